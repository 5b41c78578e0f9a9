"""Checkpoints: sharded, written whole or not at all, and bound to the options they were trained with."""

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from omnitune.files import write_json
from omnitune.training.optimizer import WeightAverage
from omnitune.training.parallel import SharedError, local_part, together

logger = logging.getLogger("omnitune")

FULL_DISK_BYTES = 16_000_000  # with fewer free, the disk is what failed, whatever torch says
MODEL_FOLDER = "pytorch_model_fsdp_0"
OPTIMIZER_FOLDER = "optimizer_0"
AVERAGE_FOLDER = "ema_0"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint says of itself, beside its tensors.

    Attributes:
        step: optimizer steps done.
        identity: the options that decide the weights (ExperimentOptions.identity), the starting weights and the data.
        lora: rank, alpha and target modules; None for training without adapters.
        scheduled: False for one that a stopped training has left between the steps at which it saves.
        running: figures that training goes on with: its scale of the loss, and steps skipped so far.
    """

    step: int
    identity: dict[str, Any]
    lora: dict[str, Any] | None
    scheduled: bool = True
    running: dict[str, Any] = field(default_factory=dict)


def is_main() -> bool:
    """Whether this is the first process of all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Complete training checkpoints of an experiment's folder, by step."""
    found = {int(m[1]): p for p in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / STATE_FILE).is_file()}


def require_steps(folder: Path, steps: Iterable[int]) -> None:
    """Raises ValueError for a checkpoint to be evaluated that is not there, since it was not saved or was removed before."""
    missing = [str(step) for step in steps if step not in list_checkpoints(folder)]
    if missing:
        raise ValueError(
            f"{folder}: val.evaluate_checkpoints asks for step {', '.join(missing)}, of which no checkpoint is left: this "
            "training ran with another logger.checkpointing_steps or logger.checkpoints_total_limit. Set them back, or "
            "val.evaluate_checkpoints: last, or give the experiment another name to train it again."
        )


def read_state(checkpoint: Path) -> TrainerState:
    """Reads what a checkpoint says of itself; raises ValueError if its state file is damaged."""
    path = checkpoint / STATE_FILE
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error}). Remove {checkpoint} to go on from an earlier checkpoint."
        ) from None


class CheckpointSaver:
    """Writes checkpoint-{step}: every process its own shards, to a temporary name that is renamed when all are on disk.

    The tensors are written by a thread, which talks to the other processes' threads over a group of its own.

    Args:
        folder: experiments/{experiment}.
        model, optimizers, average: what is saved; frozen weights, which are the base model's, are not.
        background: training goes on while they are written, from a copy in CPU memory; otherwise `save` waits.
        limit: keep at most so many checkpoints (None: all) ..
        keep: .. besides those of these steps.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[Optimizer],
        average: WeightAverage | None,
        *,
        background: bool,
        limit: int | None,
        keep: set[int],
    ) -> None:
        self.folder, self.background, self.limit, self.keep = folder, background, limit, keep
        self.model, self.optimizers, self.average = model, optimizers, average
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[TrainerState, Future[None]] | None = None
        self._copy: dict[int, Tensor] = {}

    @property
    def written(self) -> bool:
        """Whether this process has nothing left to write; when all have not, `complete` need not wait."""
        return self._pending is None or self._pending[1].done()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint waits for `complete`."""
        return self._pending is not None

    def save(self, state: TrainerState) -> None:
        """Writes a checkpoint, or starts to; `complete` makes it one. Every process calls it; raises as `complete` does."""
        self.complete()
        states = self._states()
        if self.background:
            states = self._copied(states)
        self._pending = state, self._thread.submit(self._write, states, self._temporary(state.step))
        if not self.background:
            wait([self._pending[1]])

    def complete(self) -> None:
        """Gives a saved checkpoint its name, waiting for it to be written; every process calls it.

        Raises SharedError where it cannot be written, as on a full disk; earlier checkpoints stay as they are.
        """
        if self._pending is None:
            return
        (state, writing), self._pending = self._pending, None
        with together():
            try:
                writing.result()
            except (CheckpointException, OSError) as error:
                raise OSError(_unwritten(self._temporary(state.step), error)) from error
        with together():
            if is_main():
                self._finish(state)

    def _states(self) -> dict[str, dict[str, Any]]:
        """What goes into each folder."""
        options = StateDictOptions(ignore_frozen_params=True)
        fresh = [optimizer for optimizer in self.optimizers if not optimizer.state]
        model, optimizer = get_state_dict(self.model, self.optimizers, options=options)
        if fresh:  # all steps were skipped: torch has taken one with gradients of zero, which must not count
            for state in [state for each in fresh for state in each.state.values() if "step" in state]:
                state["step"].zero_()
            model, optimizer = get_state_dict(self.model, self.optimizers, options=options)
        states: dict[str, Any] = {MODEL_FOLDER: model, OPTIMIZER_FOLDER: optimizer}
        return states | ({AVERAGE_FOLDER: self.average.average} if self.average else {})

    @torch.no_grad()
    def _copied(self, states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same in CPU memory, not to be changed by further steps; one copy, which the next save takes again."""
        leaves, structure = tree_flatten(states)
        tensors = {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        if self._copy.keys() == tensors.keys():
            torch._foreach_copy_(
                [local_part(self._copy[k]) for k in tensors], [local_part(t) for t in tensors.values()]
            )
        else:
            self._copy = {
                k: t.detach().clone() if t.device.type == "cpu" else t.detach().to("cpu") for k, t in tensors.items()
            }
        return tree_unflatten([self._copy.get(number, leaf) for number, leaf in enumerate(leaves)], structure)

    def _write(self, states: Mapping[str, dict[str, Any]], temporary: Path) -> None:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process; meant so
        for name, state in states.items():
            dcp.save(state, checkpoint_id=temporary / name, process_group=self._group, no_dist=self._group is None)

    def _finish(self, state: TrainerState) -> None:
        temporary, final = self._temporary(state.step), self.folder / f"checkpoint-{state.step}"
        write_json(temporary / STATE_FILE, vars(state))
        for path in (*temporary.iterdir(), temporary):
            if path.is_dir():
                _sync_folder(path)
        if final.exists():  # what conversion left here belonged to weights of an earlier training
            _remove(final)
        temporary.rename(final)
        _sync_folder(self.folder)
        size = sum(f.stat().st_size for f in final.rglob("*") if f.is_file())
        adapters = ", adapters only" if state.lora else ""
        logger.info("saved %s (%.1f MB%s)", final, size / 1e6, adapters)
        remove_superfluous(self.folder, self.limit, self.keep)

    def _temporary(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}.tmp"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritten(temporary: Path, error: BaseException) -> str:
    # Torch's own message depends on where in a file the disk became full.
    free = shutil.disk_usage(temporary.parent).free
    reason = "No space left on device" if free < FULL_DISK_BYTES else reason_of(error)
    return f"{temporary} cannot be written: {reason}. Earlier checkpoints are whole."


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


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizers: list[Optimizer], average: WeightAverage | None
) -> None:
    """Loads weights, optimizers and average in place, at the same or another number of processes.

    Raises SharedError where a file of it is missing or damaged.
    """
    options = StateDictOptions(ignore_frozen_params=True)
    model_state, optimizer_state = get_state_dict(model, optimizers, options=options)
    states = {MODEL_FOLDER: model_state, OPTIMIZER_FOLDER: optimizer_state}
    if average:
        states[AVERAGE_FOLDER] = average.average
    for name, state in states.items():
        try:
            dcp.load(state, checkpoint_id=checkpoint / name)
        except (CheckpointException, OSError) as error:
            raise SharedError(
                f"{checkpoint / name}: cannot be read, a file is missing or damaged: {reason_of(error)}. "
                f"Remove {checkpoint} to go on from an earlier checkpoint."
            ) from error
    # Adapter-only checkpoints lack the frozen weights on purpose.
    set_state_dict(
        model,
        optimizers,
        model_state_dict=model_state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in folder.glob("checkpoint-*.tmp"):
        logger.info("removing %s, left by an interrupted save", leftover)
        shutil.rmtree(leftover)


def remove_superfluous(folder: Path, limit: int | None, keep: set[int]) -> None:
    """Removes the oldest checkpoints beyond `limit`, and unscheduled ones that a newer one follows; never the newest,
    nor those of the steps in `keep`.
    """
    checkpoints = list_checkpoints(folder)
    scheduled = [step for step, path in checkpoints.items() if read_state(path).scheduled]
    beyond = set(scheduled[:-limit]) if limit else set()
    doomed = (beyond | (checkpoints.keys() - scheduled)) - keep - {max(checkpoints, default=0)}
    for step in sorted(doomed):
        reason = (
            f"logger.checkpoints_total_limit: {limit}"
            if step in scheduled
            else "of a stopped training; a newer one is there"
        )
        logger.info("removing checkpoint-%d (%s)", step, reason)
        try:
            _remove(checkpoints[step])
        except OSError as error:  # no reason to stop: the new one is whole
            logger.warning("%s cannot be removed: %s", checkpoints[step], error)


def find_resumable(folder: Path, identity: dict[str, Any], last_step: int, start_over: bool = False) -> Path | None:
    """The newest checkpoint not beyond `last_step`. Those beyond it are set aside, into `superseded-{n}/`.

    With `start_over`, checkpoints of other options are set aside as well. Those of the same options are not: a training that
    starts over gets to the same weights, and one that was preempted must not lose what it has done.

    Raises:
        ValueError: where they belong to other options, naming the keys that differ.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    differences = differing_keys(read_state(checkpoints[max(checkpoints)]).identity, identity)
    if differences and not start_over:
        raise ValueError(
            "\n  - ".join([f"{folder}: its checkpoints were trained under other options:", *differences])
            + "\nUndo the change or give the experiment another name. To start it over, set resume_from_checkpoint: null; "
            f"the old checkpoints are then kept in {folder}/superseded-{_next_number(folder)}."
        )
    if differences:
        _set_aside(folder, [*checkpoints.values(), folder / "logs"], "resume_from_checkpoint: null, and other options")
        return None
    beyond = [path for step, path in checkpoints.items() if step > last_step]
    if beyond:
        _set_aside(folder, beyond, f"train.max_train_steps: {last_step}")
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


def _next_number(folder: Path) -> int:
    return 1 + max((int(p.name.rsplit("-", 1)[1]) for p in folder.glob("superseded-*")), default=0)


def _set_aside(folder: Path, paths: Iterable[Path], reason: str) -> None:
    target = folder / f"superseded-{_next_number(folder)}"
    target.mkdir()
    names = [path.name for path in paths if path.exists()]
    for name in names:
        (folder / name).rename(target / name)
    logger.warning("%s: %s of %s are kept in %s", reason, ", ".join(names), folder, target)
