"""Checkpoints on disk: which are whole, what each says of itself, which are gone on from, kept or removed."""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnitune.io.files import remove_tree, sha256_of
from omnitune.paths import STATE_FILE

logger = logging.getLogger("omnitune")

_NAME = re.compile(r"checkpoint-(\d+)")
_EVALUATED = re.compile(r"(\d+)(-ema)?")
_SUPERSEDED = re.compile(r"superseded-(\d+)")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint says of itself, beside its tensors.

    Attributes:
        step: optimizer steps done.
        identity: what decides the weights: options, starting weights and data.
        lora: rank, alpha and target modules; None for training without adapters.
        scheduled: False for one that a stopped training has left between the steps at which it saves.
        running: figures that training goes on with: its scale of the loss, and steps skipped so far.
        files: SHA-256 of each file of the checkpoint, by its path in there.
    """

    step: int
    identity: dict[str, Any]
    lora: dict[str, Any] | None
    scheduled: bool = True
    running: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Complete training checkpoints of an experiment's folder, by step."""
    found = {int(m[1]): p for p in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / STATE_FILE).is_file()}


def require_steps(folder: Path, steps: Iterable[int]) -> None:
    """Raises ValueError for a checkpoint to be evaluated that is not there: it was not saved, or was removed."""
    missing = [str(step) for step in steps if step not in list_checkpoints(folder)]
    if missing:
        raise ValueError(
            f"{folder}: val.evaluate_checkpoints asks for step {', '.join(missing)}, of which no checkpoint is left: "
            "this training ran with another logger.checkpointing_steps or logger.checkpoints_total_limit. Set them "
            "back, or val.evaluate_checkpoints: last, or give the experiment another name to train it again."
        )


def read_state(checkpoint: Path) -> TrainerState:
    """Reads what a checkpoint says of itself; raises ValueError if its state file is damaged."""
    path = checkpoint / STATE_FILE
    try:
        state = TrainerState(**json.loads(path.read_text(encoding="utf-8")))
        return replace(state, identity=_present_form(state.identity))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged ({error}). Remove {checkpoint} to go on from an earlier checkpoint."
        ) from None


def _present_form(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity as it is written now: keys of options had no full names before, data was the hash of its index, and
    weights without a conversion's manifest were names and sizes.
    """
    options = {
        f"{section}.{name}" if isinstance(content, dict) else section: value
        for section, content in identity["options"].items()
        for name, value in (content.items() if isinstance(content, dict) else [(section, content)])
    }
    older = {"data"} if "index" in identity["data"] else set()
    if isinstance(identity.get("starting_weights"), list):
        older.add("starting_weights")
    return {name: value for name, value in identity.items() if name not in older} | {"options": options}


def check_files(checkpoint: Path, state: TrainerState, names: Iterable[str]) -> None:
    """Raises ValueError where a file of a checkpoint is not what was saved.

    Args:
        checkpoint: its folder.
        state: what it says of itself.
        names: keys of `state.files` to look at.
    """
    for name in names:
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"{path}: is missing. Remove {checkpoint}; training goes on from an earlier checkpoint.")
        if sha256_of(path) != state.files[name]:
            raise ValueError(
                f"{path}: is not what training has saved (its SHA-256 differs from {STATE_FILE}). Remove {checkpoint}; "
                "training goes on from an earlier checkpoint."
            )


def newest_state(folder: Path) -> TrainerState | None:
    """What the newest checkpoint of an experiment's folder says of itself; None without any."""
    checkpoints = list_checkpoints(folder)
    return read_state(checkpoints[max(checkpoints)]) if checkpoints else None


def remove(folder: Path) -> None:
    """Removes a folder by way of a name that does not look whole; called again, it ends a removal that was killed."""
    doomed = removal_of(folder)
    if folder.exists():
        remove_tree(doomed)
        folder.rename(doomed)
    remove_tree(doomed)


def removal_of(folder: Path) -> Path:
    """Where what is being removed lies."""
    return folder.with_name(f"{folder.name}.removed.tmp")


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in folder.glob("checkpoint-*.tmp"):
        logger.info("removing %s, left by an interrupted save", leftover)
        remove_tree(leftover)


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
            remove(checkpoints[step])
        except OSError as error:  # no reason to stop: the new one is whole
            logger.warning("%s cannot be removed: %s", checkpoints[step], error)


def find_resumable(folder: Path, last_step: int, same: bool) -> Path | None:
    """The newest checkpoint not beyond `last_step`. Those beyond it are set aside, into `superseded-{n}/`.

    What was made of checkpoints goes with them: scores and images, and the report that shows them.

    Args:
        folder: experiments/{experiment}.
        last_step: of the training.
        same: whether the checkpoints belong to it; if not, the whole attempt is set aside, but for the evaluation of
            what it started from. A training that starts over under the same identity goes on: it would get to the same
            weights, and one that was preempted must not lose what it has done.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    if not same:
        whole = [folder / name for name in ("logs", "options.yml", "train.json", "report")]
        made = _evaluations(folder, after=0)
        # Checkpoints last, the newest at the end: while one is left, a run that was killed here is known as not done.
        set_aside(folder, [*made, *whole, *checkpoints.values()], "resume_from_checkpoint: null, and other options")
        return None
    beyond = [path for step, path in checkpoints.items() if step > last_step]
    if beyond:
        made = _evaluations(folder, after=last_step)
        set_aside(folder, [*made, folder / "report", *beyond], f"train.max_train_steps: {last_step}")
    usable = [step for step in checkpoints if step <= last_step]
    return checkpoints[max(usable)] if usable else None


def _evaluations(folder: Path, after: int) -> list[Path]:
    """Those of all steps after this one, and of their averages."""
    found = [(path, _EVALUATED.fullmatch(path.name)) for path in sorted(folder.glob("evaluation/*"))]
    return [path for path, match in found if match and int(match[1]) > after]


def next_superseded(folder: Path) -> Path:
    """Where the next checkpoints to be set aside go."""
    numbers = [int(match[1]) for path in folder.glob("superseded-*") if (match := _SUPERSEDED.fullmatch(path.name))]
    return folder / f"superseded-{1 + max(numbers, default=0)}"


def set_aside(folder: Path, paths: Iterable[Path], reason: str) -> None:
    """Moves what lies in an experiment's folder to where it is kept, and says so."""
    target = next_superseded(folder)
    target.mkdir()
    names = [path.relative_to(folder) for path in paths if path.exists()]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target / name)
    logger.warning("%s: %s of %s are kept in %s", reason, ", ".join(map(str, names)), folder, target)
