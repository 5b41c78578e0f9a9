"""Checkpoints: sharded, written whole or not at all, and bound to the options they were trained with."""

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from omnitune.files import write_json

logger = logging.getLogger("omnitune")

FULL_DISK_BYTES = 16_000_000  # with fewer free, the disk is what failed, whatever torch says
MODEL_FOLDER = "pytorch_model_fsdp_0"
OPTIMIZER_FOLDER = "optimizer_0"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint says of itself, beside its tensors.

    Attributes:
        step: optimizer steps done.
        identity: the options that decide the weights (ExperimentOptions.identity) and the starting weights.
        lora: rank, alpha and target modules; None for full-parameter training.
    """

    step: int
    identity: dict[str, Any]
    lora: dict[str, Any] | None


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def is_main() -> bool:
    """Whether this is the first process of all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Complete training checkpoints of an experiment's folder, by step."""
    found = {int(m[1]): p for p in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / STATE_FILE).is_file()}


def read_state(checkpoint: Path) -> TrainerState:
    """Reads what a checkpoint says of itself; raises ValueError if its state file is damaged."""
    path = checkpoint / STATE_FILE
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error}). Remove {checkpoint} to go on from an earlier checkpoint."
        ) from None


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainerState) -> Path:
    """Writes checkpoint-{step}: every process its own shards, to a temporary name that is renamed when all are on disk.

    Raises OSError where that fails, as on a full disk; earlier checkpoints stay as they are.
    """
    final = folder / f"checkpoint-{state.step}"
    temporary = folder / f"{final.name}.tmp"
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    # Frozen weights (those under LoRA adapters) are the base model's; they are not written again.
    model_state, optimizer_state = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    try:
        dcp.save(model_state, checkpoint_id=temporary / MODEL_FOLDER)
        dcp.save(optimizer_state, checkpoint_id=temporary / OPTIMIZER_FOLDER)
    except CheckpointException as error:
        # Torch's own message depends on where in a file the disk became full.
        free = shutil.disk_usage(folder).free
        reason = "No space left on device" if free < FULL_DISK_BYTES else reason_of(error)
        raise OSError(f"{temporary} cannot be written: {reason}. Earlier checkpoints are whole.") from error
    barrier()
    if is_main():
        write_json(temporary / STATE_FILE, vars(state))
        _replace(temporary, final)
        size = sum(f.stat().st_size for f in final.rglob("*") if f.is_file())
        logger.info("saved %s (%.1f MB)", final, size / 1e6)
    barrier()
    return final


def reason_of(error: BaseException) -> str:
    """What went wrong, without the banner of a CheckpointException."""
    if isinstance(error, CheckpointException):
        return "; ".join(str(failure[0]) for failure in error.failures.values())
    return str(error).splitlines()[0]


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint under a name that a killed removal does not leave looking whole."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.removed.tmp")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _replace(temporary: Path, final: Path) -> None:
    if final.exists():  # what conversion left here belonged to weights of an earlier training
        _remove(final)
    temporary.rename(final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Loads weights and optimizer in place, at the same or another number of processes."""
    model_state, optimizer_state = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    dcp.load(model_state, checkpoint_id=checkpoint / MODEL_FOLDER)
    dcp.load(optimizer_state, checkpoint_id=checkpoint / OPTIMIZER_FOLDER)
    # Adapter-only checkpoints lack the frozen weights on purpose.
    set_state_dict(
        model,
        optimizer,
        model_state_dict=model_state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in folder.glob("checkpoint-*.tmp"):
        logger.info("removing %s, left by an interrupted save", leftover)
        shutil.rmtree(leftover)


def limit_checkpoints(folder: Path, limit: int | None, keep: set[int]) -> None:
    """Removes the oldest checkpoints beyond `limit`, except the newest and the steps in `keep`."""
    if limit is None:
        return
    steps = list(list_checkpoints(folder))
    for step in steps[:-limit]:
        if step not in keep:
            logger.info("removing checkpoint-%d (logger.checkpoints_total_limit: %d)", step, limit)
            _remove(folder / f"checkpoint-{step}")


def find_resumable(folder: Path, identity: dict[str, Any], last_step: int, resume: bool = True) -> Path | None:
    """The newest checkpoint of the same options, not beyond `last_step`.

    Checkpoints of other options, and all of them without `resume`, are set aside, into `superseded-{n}/`: they are neither
    continued nor lost.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    differences = differing_keys(read_state(checkpoints[max(checkpoints)]).identity, identity)
    if not resume:
        differences = ["resume_from_checkpoint: null", *differences]
    if differences:
        _set_aside(folder, differences)
        return None
    usable = [step for step in checkpoints if step <= last_step]
    return checkpoints[max(usable)] if usable else None


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for each key in which two nested mappings differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def _set_aside(folder: Path, differences: list[str]) -> None:
    number = 1 + max((int(p.name.rsplit("-", 1)[1]) for p in folder.glob("superseded-*")), default=0)
    target = folder / f"superseded-{number}"
    target.mkdir()
    for path in [*list_checkpoints(folder).values(), folder / "logs"]:
        if path.exists():
            path.rename(target / path.name)
    logger.warning(
        "the checkpoints in %s are not continued (%s); training starts over and they are kept in %s",
        folder,
        "; ".join(differences),
        target,
    )
