"""A LoRA extracted from a full fine-tune: the best factors of a rank for what it has changed in each linear layer."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from omnitune.conversion.adapters import Adapter
from omnitune.conversion.formats.readers import READERS
from omnitune.conversion.tensors import LazyTensor, State, open_safetensors, write_safetensors
from omnitune.models.lora import FACTORS

# Of differences with spectra as flat as training leaves them, the explained share is that of a full decomposition to
# 2e-5, in a twentieth of its time.
MORE, ROUNDS = 16, 4  # columns beyond the rank, and power iterations, of torch.svd_lowrank
TOLERANCE = 1e-4  # of a share, as read back
FILE = "factors.tmp"


def extract(
    folder: Path, tuned: State, base: State, modules: Sequence[str], rank: int, dtype: torch.dtype
) -> tuple[Adapter, dict[str, Any]]:
    """Factors of a fine-tune's change, module by module.

    Args:
        folder: where they are kept in a file FILE; its reader may remove it once it is done.
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
    write_safetensors(folder / FILE, state)
    others = [name for name in tuned if name.removesuffix(".weight") not in modules]
    left = sum(_energy(change_of(tuned, base, name)) for name in others)
    adapter = Adapter(open_safetensors(folder / FILE), dict.fromkeys(modules, float(rank)))
    return adapter, {"rank": rank} | _shares(energies, shares, left)


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
    """What training has changed in a parameter, in float32."""
    return tuned[name].load().float() - base[name].load().float()


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
    if not torch.isfinite(change.sum()):
        raise ValueError("a change of the fine-tune holds NaN or infinity. Nothing was written.")
    kept = min(rank, rows, columns)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(change, q=min(rank + MORE, rows, columns), niter=ROUNDS)
    roots = sizes[:kept].sqrt()
    down[:kept], up[:, :kept] = roots[:, None] * right[:, :kept].T, left[:, :kept] * roots
    return down, up


def verify_extraction(
    folder: Path, tuned: State, base: State, shares: Mapping[str, float], programs: Sequence[str]
) -> list[dict[str, Any]]:
    """Compares what an extracted adapter adds, by each program's reading, with what the fine-tune has changed.

    Returns:
        of each program its name, how many modules there are, the largest difference of a share from that of `shares`,
        and the largest error of a module against the full weights, relative to its change.

    Raises:
        ValueError: for modules that are missing, too many, or that explain another share of the change than they did.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"read_as": name, "modules": 0, "difference": 0.0, "error": 0.0} for name in programs
    }
    for module, parts in _side_by_side(folder, programs, sorted(shares)):
        change = change_of(tuned, base, f"{module}.weight")
        for program, part in zip(programs, parts, strict=True):
            share = explained(change, part.scale * (part.up.float() @ part.down.float()))
            if not abs(share - shares[module]) <= TOLERANCE:  # nor NaN
                raise ValueError(
                    f"{folder}, as read by {program}: {module} explains {share:.4f} of its change, not "
                    f"{shares[module]:.4f}."
                )
            row = found[program]
            row["modules"] += 1
            row["difference"] = max(row["difference"], abs(share - shares[module]))
            row["error"] = max(row["error"], max(0.0, 1 - share) ** 0.5)
    return list(found.values())


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
