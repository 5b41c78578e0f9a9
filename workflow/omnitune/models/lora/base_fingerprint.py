"""Which weights an adapter was trained over: a fingerprint that is the same in all layouts, float32 and bfloat16."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from omnitune.errors import shown

logger = logging.getLogger("omnitune")

BASE_KEY = "omnitune_base"  # in the metadata of an adapter's file
SAMPLED = 64  # numbers of each tensor that are looked at, from its middle row
EXACT = (torch.float64, torch.float32, torch.bfloat16)  # these round to bfloat16 once, and so to the same numbers


def model_fingerprint(model: nn.Module) -> str | None:
    """That of a transformer, its adapters left out; None in precisions that do not tell."""
    named = ((name.replace(".base_layer.", "."), tensor) for name, tensor in model.state_dict().items())
    return _fingerprint((name, tensor.shape, tensor) for name, tensor in named if ".lora_" not in name)


def folder_fingerprint(folder: Path) -> str | None:
    """The same of a transformer's folder, without loading its weights; None without any."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        slices = [(name, file.get_slice(name)) for file in files for name in file.keys()]  # noqa: SIM118  (no mapping)
        return _fingerprint((name, found.get_shape(), found) for name, found in slices)


def _fingerprint(tensors: Iterable[tuple[str, Iterable[int], Any]]) -> str | None:
    """SHA-256 over name, shape and some numbers of each tensor, by name."""
    lines = sorted(_lines(tensors))
    known = bool(lines) and None not in [numbers for _, numbers in lines]
    return (
        hashlib.sha256("".join(f"{name} {numbers}\n" for name, numbers in lines).encode()).hexdigest()
        if known
        else None
    )


def _lines(tensors: Iterable[tuple[str, Iterable[int], Any]]) -> Iterator[tuple[str, str | None]]:
    for name, sides, found in tensors:
        shape = list(sides)
        sample = found[shape[0] // 2, :SAMPLED] if len(shape) > 1 else found[:SAMPLED]
        exact = sample.dtype in EXACT
        numbers = sample.detach().cpu().to(torch.bfloat16).reshape(-1).tolist() if exact else None
        yield f"{name} {shape}", None if numbers is None else str(numbers)


def recorded_base(adapter: Path, metadata: Mapping[str, str]) -> str | None:
    """The fingerprint that an adapter's metadata say; None without one, ValueError for what is none."""
    found = metadata.get(BASE_KEY)
    if found is not None and not re.fullmatch("[0-9a-f]{64}", found):
        raise ValueError(f"{adapter}: its metadata say {BASE_KEY}: {shown(found)}, no SHA-256. Take the key out.")
    return found


def warn_of_other_base(adapter: Path | str, recorded: str | None, found: str | None) -> None:
    """Says in the log that an adapter is put over other weights than it was trained over, where both are known."""
    if recorded and found and recorded != found:
        logger.warning(
            "%s: was trained over other weights (fingerprint %s) than those that it is put over now (%s). What it does "
            "there was never learnt; take the transformer that it was trained over.",
            adapter,
            recorded[:12],
            found[:12],
        )
