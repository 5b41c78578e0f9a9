"""What a stage tells the person: log lines, progress, and errors without a traceback."""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

from omnitune.errors import printable

logger = logging.getLogger("omnitune")


PLAIN_PROGRESS = "OMNITUNE_PLAIN_PROGRESS"
INTERRUPTED = 75  # exit code of work that was asked to stop and can go on: the temporary failure of sysexits.h


class Interrupted(Exception):  # noqa: N818  (no fault of anybody)
    """Work that was asked to stop has ended; the same command goes on with what is saved."""


def plain_progress() -> bool:
    """Whether progress goes out as log lines: without a terminal, and in jobs of a workflow, which share one."""
    return PLAIN_PROGRESS in os.environ or not sys.stderr.isatty()


UNUSED = "torchao"  # diffusers and peft import it where it is installed: a second, and warnings of absent kernels
# Warnings of the libraries are advice to whoever calls them, of what is looked at here or is no fault.
VERBOSITIES = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY")


class _Lines(logging.Formatter):
    """Messages as they are, but for what a terminal would act on: they quote names and values of strangers' files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def setup_process(log_file: Path | str | None = None) -> None:
    """At the start of a process of ours: sends log lines to stderr and, if given, to a file as well."""
    # What importing the libraries makes stays; looking for garbage among it takes a fifth of a process's start.
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    sys.modules.setdefault(UNUSED, None)  # type: ignore[arg-type]  # Python's way to say that there is no such module
    for name in VERBOSITIES:
        os.environ.setdefault(name, "error")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        os.environ[PLAIN_PROGRESS] = "1"
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logger.setLevel(logging.INFO)


@contextmanager
def job(log_file: Path | str | None = None) -> Iterator[None]:
    """Runs one stage: sets up its log, and turns a user's mistake (ValueError) or a failing disk into one message.

    Exits with code 1 then, and with INTERRUPTED where work can go on; any other exception is a defect and keeps its
    traceback.
    """
    setup_process(log_file)
    try:
        yield
    except Interrupted as error:
        logger.warning("%s", error)
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        logger.error("Error: %s", error)
        logger.debug("", exc_info=True)
        raise SystemExit(1) from None


class Progress:
    """Progress of a long piece of work: a bar on a terminal, otherwise a log line every few seconds.

    Log lines are for the jobs of a workflow, which share one terminal or write to files.
    """

    def __init__(
        self, description: str, total: int, unit: str, done: int = 0, interval: float = 10.0, enabled: bool = True
    ) -> None:
        self.description, self.total, self.unit, self.interval = description, total, unit, interval
        self.done = self.initial = self._shown = done
        self.started = self.reported = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        self._lines = enabled and plain_progress()
        if enabled and not self._lines:
            columns: list[str | rich.progress.ProgressColumn] = [
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[info]}"),
                rich.progress.TimeRemainingColumn(),
            ]
            self._bar = rich.progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(description, total=total, completed=done, info="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._lines and kind is None and self.done != self._shown:
            logger.info("%s", self._line(""))

    def advance(self, amount: int = 1, info: str = "") -> None:
        """Counts `amount` units as done; `info` is shown beside the rate."""
        self.done += amount
        if self._bar:
            if not self._bar.live.is_started:  # only now, so that worker processes fork before its thread exists
                self._bar.start()
            self._bar.update(self._task, completed=self.done, info=f"{self._rate():.1f} {self.unit}/s {info}")
        elif self._lines and time.monotonic() - self.reported >= self.interval:
            self.reported, self._shown = time.monotonic(), self.done
            logger.info("%s", self._line(info))

    def _rate(self) -> float:
        return (self.done - self.initial) / max(time.monotonic() - self.started, 1e-9)

    def _line(self, info: str) -> str:
        left = (self.total - self.done) / max(self._rate(), 1e-9)
        share = 100 * self.done // max(self.total, 1)
        when = f", {int(left) // 60}:{int(left) % 60:02d} left" if self.done < self.total else ""
        extra = f", {info}" if info else ""
        count = f"{self.done}/{self.total} {self.unit} ({share} %)"
        return f"{self.description}: {count}, {self._rate():.1f} {self.unit}/s{when}{extra}"
