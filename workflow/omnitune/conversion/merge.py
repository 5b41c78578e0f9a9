"""Merge adapters, of any tool that is read, into a transformer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnitune.conversion.adapters import Adapter
from omnitune.conversion.card import merge_card
from omnitune.conversion.keys import empty_transformer
from omnitune.conversion.start import starting_state
from omnitune.conversion.write import Target, Weights, require_replaceable, write_weights
from omnitune.io.files import portable, sha256_of
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.base_fingerprint import folder_fingerprint, warn_of_other_base
from omnitune.models.lora.lora import linear_names, read_factors, read_lora_header, require_fitting
from omnitune.paths import adapter_file
from omnitune.pretrained.transformer import require_transformer


def merge(
    transformer: Path, loras: Sequence[Path], scales: Sequence[float], save_path: Path, target: Target
) -> dict[str, Any]:
    """Writes W + the sum of scale x (W with one adapter - W), verified as a conversion is.

    Args:
        transformer: folder of the weights under the adapters, in the published layout.
        loras: files or folders of adapters.
        scales: the strength of each; empty for 1.
        save_path: the folder to write; an older conversion there is replaced.
        target: format, precision and file size.

    Returns:
        The content of `conversion.json`, which stands in the folder.

    Raises:
        ValueError: for weights or adapters that cannot be read or do not fit each other, and for a wrong number of
            scales.
    """
    strengths = _strengths(loras, scales)
    require_replaceable(save_path, [transformer, *loras, *([target.base] if target.base else [])])
    config = require_transformer(transformer, "--transformer")
    model = empty_transformer(config)
    state, base = starting_state(transformer, model), folder_fingerprint(transformer)
    adapters = [(_fitting(path, model, base), strength) for path, strength in zip(loras, strengths, strict=True)]
    files = [adapter_file(str(path)) for path in loras]
    facts = {
        "source": portable(transformer),
        "adapters": [
            {"source": portable(path), "sha256": sha256_of(path), "scale": strength}
            for path, strength in zip(files, strengths, strict=True)
        ],
        "kind": "full",
        "keys": len(state),
        "parameters": sum(tensor.numel for tensor in state.values()),
    }
    return write_weights(save_path, Weights(config, state, adapters), target, lambda: facts, merge_card)


def _strengths(loras: Sequence[Path], scales: Sequence[float]) -> list[float]:
    if not loras:
        raise ValueError("--lora: name at least one adapter to merge.")
    strengths = list(scales) or [1.0] * len(loras)
    if len(strengths) != len(loras):
        raise ValueError(f"--scale: {len(strengths)} strengths for {len(loras)} adapters; give one for each, or none.")
    wrong = [strength for strength in strengths if not math.isfinite(strength)]
    if wrong:
        raise ValueError(f"--scale: {wrong[0]} is no number.")
    return strengths


def _fitting(path: Path, model: OmniGen2Transformer2DModel, base: str | None) -> Adapter:
    found = read_lora_header(path, modules=linear_names(model))
    tensors = read_factors(found)
    require_fitting(path, tensors, model)
    warn_of_other_base(path, found.base, base)
    return Adapter.of(tensors, found.config)
