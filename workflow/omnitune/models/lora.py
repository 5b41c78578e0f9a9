"""LoRA adapters of the transformer, and their file in the published layout.

The file is `pytorch_lora_weights.safetensors` with keys `transformer.<module>.lora_A.weight` and `lora_B.weight`, and with DoRA
`lora_magnitude_vector`. Without more, alpha equals the rank. The adapter's config travels in the file's metadata under
`lora_adapter_metadata`, as diffusers writes it, so that another alpha and rsLoRA survive.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import hf_hub_download
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from omnitune.io.files import atomic_path
from omnitune.io.places import is_local
from omnitune.io.weights import read_header
from omnitune.paths import ADAPTER_FILE

from .adapter_metadata import adapter_ranks, checked_metadata
from .files import require_finite

METADATA_KEY = "lora_adapter_metadata"
PREFIX = "transformer."
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")
MAGNITUDE = ".lora_magnitude_vector"
FACTORS = (".lora_A.weight", ".lora_B.weight")


def resolve_targets(model: Any, targets: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter, in the model's order.

    Args:
        model: without adapters.
        targets: ends of names (`to_q`, `feed_forward.linear_1`) or shell patterns of whole names (`layers.*.attn.*`); None
            means TARGET_MODULES.

    Raises:
        ValueError: for an entry that fits no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen: set[str] = set()
    for entry in TARGET_MODULES if targets is None else targets:
        if any(sign in entry for sign in "*?["):
            found = [name for name in names if fnmatchcase(name, entry)]
        else:
            found = [name for name in names if f".{name}".endswith(f".{entry}")]
        if not found:
            depth = entry.count(".") + 1
            ends = {".".join(name.split(".")[-depth:]) for name in names}
            near = difflib.get_close_matches(entry, sorted({*names, *ends}), n=3, cutoff=0.4) or sorted(ends)
            raise ValueError(
                f"train.lora_target_modules: {entry!r} fits no linear layer of the transformer. Near: {', '.join(near[:10])}."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def lora_config(
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] = TARGET_MODULES,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> LoraConfig:
    """Config of an adapter for `model.add_adapter`; Gaussian start, so that a new adapter changes nothing.

    Args:
        rank: of the two factors.
        alpha: the adapter is scaled by alpha / rank; None means rank.
        dropout: on the adapter's input, in training.
        target_modules: names of the Linear layers that get one, or their endings.
        use_dora: DoRA (arXiv 2402.09353), with a magnitude for each output.
        use_rslora: rsLoRA (arXiv 2312.03732), scaled by alpha / sqrt(rank).
    """
    if rank < 1:
        raise ValueError(f"lora rank = {rank} must be at least 1")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(target_modules),
        use_dora=use_dora,
        use_rslora=use_rslora,
    )


def published_name(name: str, adapter_name: str = "default") -> str | None:
    """Name in the file of an adapter's tensor, with or without the adapter's name in it; None for any other tensor."""
    match = re.fullmatch(rf"(.+\.lora_(?:A|B|magnitude_vector))(?:\.{re.escape(adapter_name)})?(?:\.weight)?", name)
    if match is None:
        return None
    return match[1] if match[1].endswith(MAGNITUDE) else f"{match[1]}.weight"


def lora_state_dict(
    source: nn.Module | Mapping[str, torch.Tensor], adapter_name: str = "default"
) -> dict[str, torch.Tensor]:
    """The adapter's tensors, named `<module>.lora_A.weight`, `<module>.lora_B.weight` and `<module>.lora_magnitude_vector`.

    Args:
        source: a model with the adapter, or its (gathered) state dict, base weights included or not.
        adapter_name: which adapter.

    Raises:
        ValueError: when the source has no such adapter.
    """
    state_dict = source.state_dict() if isinstance(source, nn.Module) else source
    named = ((published_name(name, adapter_name), tensor) for name, tensor in state_dict.items())
    adapter = {name: tensor for name, tensor in named if name is not None}
    if not adapter:
        raise ValueError(f"no LoRA adapter named '{adapter_name}' among {len(state_dict)} tensors")
    return adapter


def save_lora(
    folder: str | Path,
    state_dict: Mapping[str, torch.Tensor],
    config: LoraConfig | Mapping[str, Any] | None = None,
    weight_name: str = ADAPTER_FILE,
) -> Path:
    """Write an adapter in the published layout, under a temporary name first.

    Args:
        folder: made where it is missing.
        state_dict: as from lora_state_dict.
        config: of the adapter; None leaves alpha = rank to the reader.
        weight_name: of the file.

    Returns:
        the path of the file.
    """
    metadata = {"format": "pt"}
    if config is not None:
        values = config.to_dict() if isinstance(config, LoraConfig) else dict(config)
        # a set has no order: sorted, equal adapters give equal files
        values = {PREFIX + key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        metadata[METADATA_KEY] = json.dumps(values, indent=2, sort_keys=True)
    path = Path(folder) / weight_name
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return path


def read_lora(
    source: str | Path, weight_name: str = ADAPTER_FILE
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Read an adapter from its file, its folder, or the repository with this id.

    Returns:
        the tensors as lora_state_dict names them, and the adapter's config, or None where the file carries none.

    Raises:
        ValueError: for a file that is damaged, with other tensors than the transformer's LoRA pairs, or with metadata that
            do not fit these.
        FileNotFoundError: for a folder without the file.
    """
    path = Path(source)
    if path.is_dir():
        path = path / weight_name
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: a LoRA folder holds {weight_name}")
    elif not is_local(str(source), "adapter"):
        path = Path(hf_hub_download(str(source), weight_name))
    names, texts = read_header(path)
    unknown = _incomplete(names)
    if unknown or not names:
        raise ValueError(
            f"{path} is no LoRA of the transformer: {len(unknown)} of {len(names)} tensors, such as "
            f"{unknown[:3]}, are not {PREFIX}<module>.lora_A.weight and lora_B.weight in pairs, each with "
            "lora_magnitude_vector or none"
        )
    shapes = {name.removeprefix(PREFIX): shape for name, shape in names.items()}
    use_dora = any(name.endswith(MAGNITUDE) for name in shapes)
    config = checked_metadata(path, texts.get(METADATA_KEY), adapter_ranks(path, shapes), use_dora)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()}
    require_finite(tensors, path)
    return tensors, config


def _incomplete(names: Iterable[str]) -> list[str]:
    """The names that belong to no adapter of the transformer with all its parts."""
    names = set(names)
    parts = (*FACTORS, MAGNITUDE) if any(name.endswith(MAGNITUDE) for name in names) else FACTORS
    modules = {name.removesuffix(part) for part in parts for name in names if name.endswith(part)}
    whole = {
        module for module in modules if module.startswith(PREFIX) and all(module + part in names for part in parts)
    }
    return sorted(names - {module + part for module in whole for part in parts})


def load_lora(
    model: Any, source: str | Path, adapter_name: str = "default", weight_name: str = ADAPTER_FILE, **kwargs: Any
) -> None:
    """Add the adapter at `source` (see read_lora) to a transformer and activate it.

    Raises:
        ValueError: when the adapter's modules are not among the model's, or the name is taken.
    """
    tensors, config = read_lora(source, weight_name)
    modules = adapted_modules(tensors)
    layers = {name.removesuffix(".base_layer"): module for name, module in model.named_modules()}
    known = layers.keys()
    if modules - known:
        missing = sorted(modules - known)
        raise ValueError(
            f"{source} adapts {len(missing)} modules that the model does not have, such as {missing[:3]}: "
            "it belongs to a model of another size"
        )
    for module in sorted(modules):
        wide = getattr(layers[module], "in_features", None), getattr(layers[module], "out_features", None)
        found = tensors[module + FACTORS[0]].shape[1], tensors[module + FACTORS[1]].shape[0]
        if wide != found:
            raise ValueError(
                f"{source} belongs to a model of another size: {module} takes {wide[0]} features to {wide[1]}, "
                f"the adapter {found[0]} to {found[1]}"
            )
    model.load_lora_adapter(tensors, prefix=None, metadata=config, adapter_name=adapter_name, **kwargs)


def adapted_modules(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the modules that an adapter's tensors, named as lora_state_dict names them, belong to."""
    return {name.rsplit(".lora_", 1)[0] for name in tensors}


class OmniGen2LoraLoaderMixin(LoraBaseMixin):
    """load_lora_weights and save_lora_weights of the pipeline; the rest (set_adapters, fuse, unload) is diffusers'."""

    _lora_loadable_modules = ["transformer"]

    def load_lora_weights(  # type: ignore[override]
        self, source: str | Path, adapter_name: str = "default", weight_name: str = ADAPTER_FILE
    ) -> None:
        """Add an adapter to the transformer and activate it; see load_lora."""
        load_lora(self.transformer, source, adapter_name, weight_name, _pipeline=self)  # type: ignore[attr-defined]

    @classmethod
    def save_lora_weights(  # type: ignore[override]
        cls,
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, torch.Tensor],
        transformer_lora_adapter_metadata: LoraConfig | Mapping[str, Any] | None = None,
        weight_name: str = ADAPTER_FILE,
    ) -> None:
        """Write an adapter; see save_lora."""
        save_lora(save_directory, transformer_lora_layers, transformer_lora_adapter_metadata, weight_name)
