"""A LoRA extracted from a full fine-tune: the best factors of a rank for what it has changed in each linear layer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from omnitune.config.experiment.convert import EXTRACTED_RANK
from omnitune.conversion.adapters import Adapter
from omnitune.conversion.formats.readers import READERS
from omnitune.conversion.tensors import LazyTensor, State, open_safetensors, write_safetensors
from omnitune.models.files import is_finite
from omnitune.models.lora.lora import FACTORS

# In a fine-tune of the demo they explain what a full decomposition does to 2e-4 of each layer's change, at ranks from 4
# to 64; of a matrix of 2520 x 2520 they take a sixteenth of its time.
MORE, ROUNDS = 16, 4  # columns beyond the rank, and power iterations, of torch.svd_lowrank
TOLERANCE = 1e-6  # of what is added, as read back: the same factors, in float32
FILE = "factors.tmp"


def extract(
    folder: Path, tuned: State, base: State, modules: Sequence[str], rank: int, dtype: torch.dtype
) -> tuple[Adapter, dict[str, Any]]:
    """Factors of a fine-tune's change, module by module.

    Args:
        folder: where they are kept in a file FILE, which is to be removed once the adapter is written and verified.
        tuned, base: all weights of the fine-tune, and those that it started from.
        modules: names of the linear layers.
        rank: of all; factors of smaller layers are filled up with zeros.
        dtype: of the factors.

    Returns:
        the adapter, and what it explains: the share of the squared change that is in it, of each module and of all
        parameters, and which share lies in parameters that no adapter has.
    """
    shares: dict[str, float] = {}
    energies: dict[str, float] = {}

    @lru_cache(maxsize=1)  # both factors of a module are written one after the other
    def factors(module: str) -> tuple[torch.Tensor, torch.Tensor]:
        change = change_of(tuned, base, f"{module}.weight")
        down, up = (factor.to(dtype) for factor in _factors(change, rank))
        energies[module], shares[module] = _energy(change), explained(change, up.float() @ down.float())
        return down, up

    def one(module: str, which: int) -> torch.Tensor:
        return factors(module)[which]

    state: State = {}
    for module in modules:
        rows, columns = tuned[f"{module}.weight"].shape
        state[module + FACTORS[0]] = LazyTensor.computed((rank, columns), dtype, partial(one, module, 0))
        state[module + FACTORS[1]] = LazyTensor.computed((rows, rank), dtype, partial(one, module, 1))
    others = [name for name in tuned if name.removesuffix(".weight") not in modules]
    left = sum(_energy(change_of(tuned, base, name)) for name in others)
    write_safetensors(folder / FILE, state)
    adapter = Adapter(open_safetensors(folder / FILE), dict.fromkeys(modules, float(rank)))
    return adapter, {"rank": rank} | _shares(energies, shares, left)


def require_rank(shapes: Mapping[str, Sequence[int]], modules: Sequence[str], rank: int) -> None:
    """Raises ValueError for a rank that is far beyond each layer's, where it would be zeros, in files of any size."""
    widest = max(min(shapes[f"{module}.weight"]) for module in modules)
    if rank > max(widest, EXTRACTED_RANK):
        raise ValueError(
            f"rank: {rank} is not allowed for the format extracted: a LoRA of rank {widest} has all of each layer."
        )


def _shares(energies: dict[str, float], shares: dict[str, float], left: float) -> dict[str, Any]:
    """What an adapter explains of all that has changed.

    Args:
        energies: squared change by module.
        shares: the part of it that the adapter has.
        left: squared change of what lies outside of the modules.
    """
    total = sum(energies.values()) + left
    held = sum(energies[module] * shares[module] for module in energies)
    return {
        "explained": held / total if total else 1.0,
        "outside_of_modules": left / total if total else 0.0,
        "explained_by_module": dict(sorted(shares.items())),
    }


def change_of(tuned: State, base: State, name: str) -> torch.Tensor:
    """What training has changed in a parameter, in float32; ValueError where that is not finite."""
    change = tuned[name].load().float() - base[name].load().float()
    if not is_finite(change):
        raise ValueError(f"{name}: what training has changed in it holds NaN or infinity. Nothing was written.")
    return change


def explained(change: torch.Tensor, found: torch.Tensor) -> float:
    """The share of a squared change that another one has in it; 1 where nothing was changed."""
    energy = _energy(change)
    return 1 - _energy(change - found) / energy if energy else 1.0


def _energy(change: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2


def _factors(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [rank, in] and [out, rank], equally large, whose product is the nearest to a change [out, in]."""
    rows, columns = change.shape
    down, up = torch.zeros(rank, columns), torch.zeros(rows, rank)
    kept = min(rank, rows, columns)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(change, q=min(rank + MORE, rows, columns), niter=ROUNDS)
    roots = sizes[:kept].sqrt()
    down[:kept], up[:, :kept] = roots[:, None] * right[:, :kept].T, left[:, :kept] * roots
    return down, up


def describe(adapter: Adapter) -> dict[str, Any]:
    """What conversion.json says of an extracted adapter, where it has the transformer's figures else."""
    [rank] = {adapter.rank(module) for module in adapter.modules}
    plain = {"alpha": rank, "use_dora": False, "use_rslora": False}
    return {
        "kind": "lora",
        "keys": len(adapter.tensors),
        "base": 0,
        "start": 0,
        "parameters": sum(tensor.numel for tensor in adapter.tensors.values()),
        "lora": {"rank": rank, **plain, "targets": len(adapter.modules)},
    }


def verify_extraction(
    folder: Path, adapter: Adapter, tuned: State, base: State, programs: Sequence[str]
) -> list[dict[str, Any]]:
    """Compares what an extracted adapter adds, by each program's reading, with the factors that were to be written.

    Returns:
        of each program its name, how many modules there are, the largest difference of what a module adds, and the
        largest error of a module against the full weights, both relative: to what it adds, and to its change.

    Raises:
        ValueError: for modules that are missing, too many, or that add something else.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"read_as": name, "modules": 0, "difference": 0.0, "error": 0.0} for name in programs
    }
    for module, parts in _side_by_side(folder, programs, adapter.modules):
        change = change_of(tuned, base, f"{module}.weight")
        down, up = (adapter.part(module, end, torch.float32) for end in FACTORS)
        written = adapter.scale(module) * (up @ down)
        for program, part in zip(programs, parts, strict=True):
            added = part.scale * (part.up.float() @ part.down.float())
            difference = _distance(added, written)
            if not difference <= TOLERANCE:  # nor NaN
                raise ValueError(
                    f"{folder}, as read by {program}: {module} adds something else than its factors, by "
                    f"{difference:.2g} of it (allowed {TOLERANCE:g})."
                )
            row = found[program]
            row["modules"] += 1
            row["difference"] = max(row["difference"], difference)
            row["error"] = max(row["error"], _distance(added, change))
    return list(found.values())


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference, relative to that of what is expected; infinite beside nothing."""
    difference, size = (_energy(one) ** 0.5 for one in (found - expected, expected))
    return difference / size if size else math.inf if difference else 0.0


def _side_by_side(folder: Path, programs: Sequence[str], expected: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each module with its factors as each program reads them, so that its change is computed once."""
    readers = [READERS[program](folder) for program in programs]
    rows: Iterator[tuple[Any, ...]] = zip_longest(expected, *readers)
    for module, *pairs in rows:
        names = [pair and pair[0] for pair in pairs]
        if set(names) != {module}:
            raise ValueError(
                f"{folder}: {module} was written, {', '.join(programs)} find {', '.join(map(str, names))}."
            )
        yield module, [pair[1] for pair in pairs]
