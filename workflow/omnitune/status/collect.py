"""How far each experiment is: its stages, its training and its jobs, put together."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omnitune.checkpoints.states import list_checkpoints
from omnitune.config import ExperimentOptions
from omnitune.paths import EXPERIMENT, METRICS, OPTIONS, TRAINED
from omnitune.project import Project
from omnitune.status.expected import Expected, Files, Stage, trained_steps
from omnitune.status.jobs import Jobs, read_jobs
from omnitune.training.progress import Progress, read_progress

SILENT_STEPS, SILENT_SECONDS = 20, 600  # a training is called silent after the longer of the two


@dataclass(frozen=True)
class ExperimentStatus:
    """How far an experiment is.

    Attributes:
        experiment: its name.
        stage: the first that is not done: base, validate, shard, encode, train, convert, evaluate, report; or done, or
            unknown where its options cannot be read.
        state: running, waiting (in a queue), failed, stopped (Snakemake was killed), open (nothing is done about it
            now) or done.
        done, total: jobs of the stage.
        step, steps: of the training.
        loss: mean over its last steps.
        val_loss: the last held-out loss.
        samples_per_second: median over its last steps.
        seconds_left: of a training that runs, at the pace of its last steps.
        running, waiting, failed: jobs, of all stages.
        notes: what a person should read.
    """

    experiment: str
    stage: str
    state: str
    done: int
    total: int
    step: int | None
    steps: int | None
    loss: float | None
    val_loss: float | None
    samples_per_second: float | None
    seconds_left: float | None
    running: int
    waiting: int
    failed: int
    notes: tuple[str, ...]


def collect_status(project: Project, names: Iterable[str] = ()) -> list[ExperimentStatus]:
    """The state of these experiments, or of all: of the config, and beside them those that have a folder of their own.

    What is damaged or half-written is left out, or said in a note. Raises ValueError for a name that is neither.
    """
    left = sorted(path.parent.name for path in Path().glob(OPTIONS.format(experiment="*")))
    known, asked = list(dict.fromkeys([*project.experiments, *left])), list(names)
    for name in asked:
        if name not in known:
            raise ValueError(f"{name!r}: there is no such experiment; known: {', '.join(known) or 'none'}.")
    expected, files, jobs = Expected(project), Files(), read_jobs()
    return [_status(expected, name, files, jobs) for name in asked or known]


def _status(expected: Expected, name: str, files: Files, jobs: Jobs) -> ExperimentStatus:
    steps, stages, notes = _stages(expected, name)
    trained, damaged = _trained(name)
    stage, done = _first_open(stages, files, trained == steps)
    progress = read_progress(Path(METRICS.format(experiment=name)))
    mine = {file for found in stages for file in found.files}
    failed = {file: jobs.failed[file] for file in sorted(mine & jobs.failed.keys()) if not files.has(file)}
    waiting = sorted({jobs.waiting[file] for file in mine & jobs.waiting.keys()})
    silent = time.time() - progress.written if progress else None
    trains = stage.name == "train" and progress is not None and silent is not None and silent < _patience(progress)
    stopped = bool(mine & jobs.stopped)
    # A training that Snakemake has not started is known by its rows alone; one that has left train.json has ended.
    running = len(mine & jobs.running) or int(trains and not (waiting or failed or stopped or damaged))
    if stage.name == "train" and running and silent and not trains:
        notes.append(f"no step for {duration(silent)}")
    notes += [*damaged, *dict.fromkeys(failed.values()), *(f"in the queue: {reason}" for reason in waiting)]
    left = _seconds_left(progress, steps) if stage.name == "train" and running else None
    return ExperimentStatus(
        experiment=name,
        stage=stage.name,
        state=_state(stage.name, running, bool(waiting), bool(failed), stopped),
        done=done,
        total=len(stage.files),
        step=_step(name, progress),
        steps=steps,
        loss=progress.loss if progress else None,
        val_loss=progress.val_loss if progress else None,
        samples_per_second=progress.samples_per_second if progress else None,
        seconds_left=left,
        running=running,
        waiting=len(mine & jobs.waiting.keys()),
        failed=len(failed),
        notes=tuple(notes),
    )


def _stages(expected: Expected, name: str) -> tuple[int | None, list[Stage], list[str]]:
    """Steps of the training, stages, and what is to be said of them."""
    try:
        if name in expected.project.experiments:
            return expected.project.experiments[name].train.max_train_steps, expected.stages(name), []
        options = ExperimentOptions.load(Path(OPTIONS.format(experiment=name)))
    except (ValueError, OSError) as error:
        return None, [], [" ".join(str(error).split())]
    trained = Stage("train", (TRAINED.format(experiment=name),))
    return options.train.max_train_steps, [trained], ["not in the config: its training alone is looked at"]


def _trained(name: str) -> tuple[int | None, list[str]]:
    """The last step of a training that has ended, and what is to be said of its train.json."""
    try:
        return trained_steps(name), []
    except ValueError as error:
        return None, [str(error)]


def _first_open(stages: list[Stage], files: Files, all_steps: bool) -> tuple[Stage, int]:
    """The first stage that is not done, and how many of its jobs are. More steps open a training that was done."""
    for stage in stages:
        missing = len(files.missing(stage))
        if stage.name == "train" and not missing and not all_steps:
            missing = 1
        if missing:
            return stage, len(stage.files) - missing
    return Stage("done" if stages else "unknown", ()), 0


def _state(stage: str, running: int, waiting: bool, failed: bool, stopped: bool) -> str:
    if stage in {"done", "unknown"}:
        return stage
    states = {"running": running, "waiting": waiting, "failed": failed, "stopped": stopped}
    return next((state for state, holds in states.items() if holds), "open")


def _step(name: str, progress: Progress | None) -> int | None:
    """That of the last row, or of the newest checkpoint where the log is lost."""
    if progress:
        return progress.step
    return max(list_checkpoints(Path(EXPERIMENT.format(experiment=name))), default=None)


def _seconds_left(progress: Progress | None, steps: int | None) -> float | None:
    if progress is None or progress.seconds_per_step is None or steps is None:
        return None
    return max(steps - progress.step, 0) * progress.seconds_per_step


def _patience(progress: Progress) -> float:
    """Seconds after its last row within which a training is alive."""
    return max(SILENT_STEPS * (progress.seconds_per_step or 0), SILENT_SECONDS)


def duration(seconds: float) -> str:
    """For people: 0:07:30, or 2 d 3 h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours}:{minutes:02d}:{rest:02d}"
