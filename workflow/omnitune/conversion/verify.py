"""Read what was written as the programs that it is for do, and compare it with what was trained."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from omnitune.conversion.adapters import Adapter, peft_layer
from omnitune.conversion.formats.readers import READERS, Factors
from omnitune.conversion.read import some
from omnitune.conversion.tensors import Digest, LazyTensor, State
from omnitune.models.lora.lora import FACTORS

TOLERANCE = (
    1e-4  # of a fold or a merge, relative to what the adapter adds; the rounding to the written type comes on top
)
ARITHMETIC = 2e-6  # of float32, in which merges are computed, relative to a weight
INPUTS = 4  # rows of seeded numbers that each module of an adapter is compared with


def verify_adapter(folder: Path, adapter: Adapter, dtype: torch.dtype, programs: Sequence[str]) -> list[dict[str, Any]]:
    """Compares each module's output for seeded numbers, by each program's reading, with that of the trained adapter.

    Args:
        folder: what was written.
        adapter: as it was trained. Its modules are put over seeded weights as large as what it adds, however little
            that is: over larger ones, a wrong scale would be lost in the rounding of the outputs.
        dtype: that was written.
        programs: names of READERS.

    Returns:
        of each program its name, how many modules there are, and the largest difference, relative to the output.

    Raises:
        ValueError: for modules that are missing, too many, or that come to another output.
    """
    results = []
    for program in programs:
        where, found, worst = f"{folder}, as read by {program}", set[str](), 0.0
        for module, factors in READERS[program](folder):
            found.add(module)
            if module in adapter.modules:
                worst = max(worst, _adapter_difference(where, factors, adapter, module, dtype))
        _require_equal_names(where, found, adapter.modules)
        results.append({"read_as": program, "modules": len(found), "difference": worst})
    return results


@torch.no_grad()
def _adapter_difference(where: str, factors: Factors, adapter: Adapter, module: str, dtype: torch.dtype) -> float:
    product = adapter.part(module, FACTORS[1], torch.float64) @ adapter.part(module, FACTORS[0], torch.float64)
    added = adapter.scale(module) * product
    generator = torch.Generator().manual_seed(zlib.crc32(module.encode()))
    weight = torch.randn(added.shape, generator=generator, dtype=torch.float64)
    weight *= (added.norm() or 1.0) / weight.norm()  # of an adapter that adds nothing yet, any
    x = torch.randn(INPUTS, added.shape[1], generator=generator, dtype=torch.float64)
    trained = peft_layer(weight, adapter, module)(x)
    difference, size = float((factors.output(weight, x) - trained).norm()), float(trained.norm())
    allowed = (TOLERANCE + torch.finfo(dtype).eps) * size
    if not difference <= allowed:  # nor NaN
        raise ValueError(
            f"{where}: {_unlike(module)} (difference {difference:.2g} of {size:.2g}, allowed {allowed:.2g})."
        )
    return difference / size if size else 0.0


def verify_model(
    read_as: str,
    written: State,
    expected: Mapping[str, Digest],
    base: State | None = None,
    adapters: Sequence[tuple[Adapter, float]] = (),
) -> dict[str, Any]:
    """Compares a model's weights: bit for bit, and where adapters were merged with the weights that peft comes to.

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
        name = f"{module}.weight"
        worst = max(worst, _merge_difference(read_as, written[name], base[name], adapters, module))
    return {"read_as": read_as, "tensors": len(expected), "modules": len(modules), "difference": worst}


@torch.no_grad()
def _merge_difference(
    where: str, written: LazyTensor, base: LazyTensor, adapters: Sequence[tuple[Adapter, float]], module: str
) -> float:
    """Each number must be the nearest of its type to what was trained, so that no change is lost in rounding."""
    weight, info = base.load().double(), torch.finfo(written.dtype)
    change = torch.zeros_like(weight)
    for adapter, strength in adapters:
        if module in adapter.modules:
            layer = peft_layer(weight, adapter, module)
            layer.merge()
            change += strength * (layer.get_base_layer().weight - weight)
    trained = weight + change
    rounding = info.eps / 2 * trained.abs().clamp(min=info.smallest_normal)
    allowed = rounding + ARITHMETIC * (trained.abs() + change.abs()) + TOLERANCE * change.square().mean().sqrt()
    difference = written.load().double() - trained
    wrong = int((~(difference.abs() <= allowed)).sum())  # NaN too
    if wrong:
        raise ValueError(f"{where}: {_unlike(module)} ({wrong} of {trained.numel()} weights are others).")
    return float(difference.norm() / trained.norm()) if trained.any() else 0.0


def _unlike(module: str) -> str:
    return f"{module} gives other outputs than what was trained; with fp16 or bf16, try fp32"


def _require_equal_names(where: str, found: Any, expected: Any) -> None:
    if set(found) != set(expected):
        lost, added = set(expected) - set(found), set(found) - set(expected)
        raise ValueError(f"{where}: after reading, missing: {some(lost) or 'none'}; added: {some(added) or 'none'}.")
