"""Checkpoints: sharded, written whole or not at all, and bound to the options they were trained with."""

import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
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

from omnitune.checkpoints.average import WeightAverage
from omnitune.checkpoints.distributed import load_into
from omnitune.checkpoints.states import TrainerState, check_files, read_state, remove, remove_superfluous
from omnitune.distributed.parallel import SharedError, gather, local_part, together
from omnitune.errors import reason_of
from omnitune.io.files import sha256_of, write_json
from omnitune.paths import AVERAGE_FOLDER, MODEL_FOLDER, OPTIMIZER_FOLDER, STATE_FILE

logger = logging.getLogger("omnitune")

FULL_DISK_BYTES = 16_000_000  # with fewer free, the disk is what failed, whatever torch says


def is_main() -> bool:
    """Whether this is the first process of all."""
    return not dist.is_initialized() or dist.get_rank() == 0


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
        self._pending: tuple[TrainerState, Future[dict[str, str]]] | None = None
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
        """Writes a checkpoint, or starts to; `complete` makes it one. All processes call it. Raises as that does."""
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
        own: dict[str, str] = {}
        with together():
            try:
                own = writing.result()
            except (CheckpointException, OSError) as error:
                raise OSError(_unwritten(self._temporary(state.step), error)) from error
        files = {name: sha256 for found in gather(own) for name, sha256 in found.items()}
        with together():
            if is_main():
                self._finish(replace(state, files=dict(sorted(files.items()))))

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

    def _write(self, states: Mapping[str, dict[str, Any]], temporary: Path) -> dict[str, str]:
        """Writes this process's part of each folder; returns the SHA-256 of its files by path in the checkpoint."""
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process; meant so
        own = [f"__{dist.get_rank() if self._group else 0}_*", *([".metadata"] if is_main() else [])]
        hashes: dict[str, str] = {}
        for name, state in states.items():
            folder = temporary / name
            dcp.save(state, checkpoint_id=folder, process_group=self._group, no_dist=self._group is None)
            hashes |= {f"{name}/{path.name}": sha256_of(path) for pattern in own for path in folder.glob(pattern)}
        return hashes

    def _finish(self, state: TrainerState) -> None:
        temporary, final = self._temporary(state.step), self.folder / f"checkpoint-{state.step}"
        write_json(temporary / STATE_FILE, vars(state))
        for path in (*temporary.iterdir(), temporary):
            if path.is_dir():
                _sync_folder(path)
        if final.exists():  # what conversion left here belonged to weights of an earlier training
            remove(final)
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


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizers: list[Optimizer], average: WeightAverage | None
) -> None:
    """Loads weights, optimizers and average in place, at the same or another number of processes.

    Raises SharedError where a file of it is missing, damaged or another than was saved.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with together():  # each process looks at some of the files, as each is as fast at that as its disk
        saved = read_state(checkpoint)
        check_files(checkpoint, saved, sorted(saved.files)[rank::world_size])
    options = StateDictOptions(ignore_frozen_params=True)
    model_state, optimizer_state = get_state_dict(model, optimizers, options=options)
    states: dict[str, dict[str, Any]] = {MODEL_FOLDER: model_state, OPTIMIZER_FOLDER: optimizer_state}
    if average:
        states[AVERAGE_FOLDER] = average.average
    for name, state in states.items():
        try:
            load_into(state, checkpoint / name)
        except ValueError as error:
            raise SharedError(
                f"{str(error).rstrip('.')}. Remove {checkpoint} to go on from an earlier checkpoint."
            ) from error
    # Adapter-only checkpoints lack the frozen weights on purpose.
    set_state_dict(
        model,
        optimizers,
        model_state_dict=model_state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
