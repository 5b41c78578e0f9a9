"""Read what was written as the programs that it is for do, and compare it with what was trained."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from omnitune.conversion.adapters import Adapter, peft_layer
from omnitune.conversion.formats.readers import READERS
from omnitune.conversion.read import some
from omnitune.conversion.tensors import Digest, State
from omnitune.models.lora import FACTORS

TOLERANCE = (
    1e-4  # of a fold or a merge, relative to what the adapter adds; the rounding of the written numbers comes on top
)
INPUTS = 4  # rows of seeded numbers that each module is compared with


def verify_adapter(folder: Path, adapter: Adapter, dtype: torch.dtype, programs: Sequence[str]) -> list[dict[str, Any]]:
    """Compares each module's output for seeded numbers, by each program's reading, with that of the trained adapter.

    Args:
        folder: what was written.
        adapter: as it was trained; its modules are put over seeded weights, since its effect does not depend on them.
        dtype: that was written.
        programs: names of READERS.

    Returns:
        of each program its name, how many modules there are, and the largest difference, relative to the output.

    Raises:
        ValueError: for modules that are missing, too many, or that come to another output.
    """
    results = []
    for program in programs:
        found = dict(READERS[program](folder))
        _require_equal_names(f"{folder}, as read by {program}", set(found), set(adapter.modules))
        worst = 0.0
        for module in adapter.modules:
            width, height = adapter.tensors[module + FACTORS[0]].shape[1], adapter.tensors[module + FACTORS[1]].shape[0]
            weight, x = _seeded(module, height, width)
            read = found[module].output(weight, x)
            difference = _difference(weight, x, read, [(adapter, 1.0)], module, dtype)
            worst = max(worst, _within(f"{folder}, as read by {program}", module, *difference))
        results.append({"read_as": program, "modules": len(adapter.modules), "difference": worst})
    return results


def verify_model(
    read_as: str,
    written: State,
    expected: Mapping[str, Digest],
    base: State | None = None,
    adapters: Sequence[tuple[Adapter, float]] = (),
) -> dict[str, Any]:
    """Compares a model's weights: bit for bit, and where an adapter was merged by outputs for seeded numbers.

    Args:
        read_as: the program that reads them so.
        written: as read back.
        expected: what was to be written.
        base: the weights under the adapters.
        adapters: what was merged, each with its strength.

    Returns:
        the program, how many tensors and merged modules there are, and the largest relative difference of a merged one.

    Raises:
        ValueError: naming every tensor that is missing, too many or different.
    """
    _require_equal_names(read_as, written.keys(), expected.keys())
    different = [name for name in expected if Digest.of(written[name]) != expected[name]]
    if different:
        raise ValueError(f"{read_as}: {len(different)} tensors differ after reading: {some(different)}.")
    modules = sorted({module for adapter, _ in adapters for module in adapter.modules})
    worst = 0.0
    for module in modules:
        assert base is not None
        weight, lazy = base[f"{module}.weight"].load().double(), written[f"{module}.weight"]
        x = _seeded(module, 1, weight.shape[1])[1]
        read = x @ lazy.load().double().T
        difference = _difference(weight, x, read, adapters, module, lazy.dtype)
        worst = max(worst, _within(read_as, module, *difference))
    return {"read_as": read_as, "tensors": len(expected), "modules": len(modules), "difference": worst}


def _seeded(module: str, features_out: int, features_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs that are a function of the module's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(module.encode()))
    weight = torch.randn(features_out, features_in, generator=generator, dtype=torch.float64) / features_in**0.5
    return weight, torch.randn(INPUTS, features_in, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _difference(
    weight: torch.Tensor,
    x: torch.Tensor,
    read: torch.Tensor,
    adapters: Sequence[tuple[Adapter, float]],
    module: str,
    dtype: torch.dtype,
) -> tuple[float, float, float]:
    """Norms: of the difference to what was trained, of what is allowed, and of the output."""
    plain = x @ weight.T
    own = [
        (peft_layer(weight, adapter, module), strength) for adapter, strength in adapters if module in adapter.modules
    ]
    change = sum((strength * (layer(x) - plain) for layer, strength in own), torch.zeros_like(plain))
    trained = plain + change
    allowed = TOLERANCE * change.norm() + torch.finfo(dtype).eps * trained.norm()
    return float((read - trained).norm()), float(allowed), float(trained.norm())


def _within(where: str, module: str, difference: float, allowed: float, size: float) -> float:
    if not difference <= allowed:  # nor NaN
        raise ValueError(
            f"{where}: {module} gives other outputs than what was trained (difference {difference:.2g}, allowed "
            f"{allowed:.2g}, output {size:.2g}); with fp16 or bf16, try fp32."
        )
    return difference / size if size else 0.0


def _require_equal_names(where: str, found: Any, expected: Any) -> None:
    if set(found) != set(expected):
        lost, added = set(expected) - set(found), set(found) - set(expected)
        raise ValueError(f"{where}: after reading, missing: {some(lost) or 'none'}; added: {some(added) or 'none'}.")
