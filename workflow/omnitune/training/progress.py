"""How far a training is, from its logged rows. Imports nothing heavy: rules and `omnitune status` ask often."""

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omnitune.io.json_object import parse_json

TAIL_BYTES = 1 << 18  # some hundred rows
RECENT = 100  # steps that figures are of
STEP_FIGURES = {"loss", "samples_per_second"}  # either is in each row of a step; held-out losses have rows of their own


@dataclass(frozen=True)
class Progress:
    """The last steps of a training.

    Attributes:
        step: the last.
        rows: how many steps the figures are of.
        loss: mean over them; None where none is a number.
        val_loss: the last held-out loss; None without any.
        seconds_per_step: mean, with what saving takes.
        samples_per_second: median.
        written: time of the last row, in seconds since 1970.
    """

    step: int
    rows: int
    loss: float | None
    val_loss: float | None
    seconds_per_step: float | None
    samples_per_second: float | None
    written: float


def read_progress(metrics: Path) -> Progress | None:
    """The last steps in logs/metrics.jsonl; None without any. Lines that are damaged, or not yet whole, count not."""
    try:
        rows, written = _tail(metrics), metrics.stat().st_mtime
    except OSError:
        return None
    steps = [row for row in rows if not STEP_FIGURES.isdisjoint(row)][-RECENT:]
    if not steps:
        return None
    held_out = _numbers(rows, "val_loss")
    losses, seconds, rates = (_numbers(steps, key) for key in ("loss", "seconds", "samples_per_second"))
    return Progress(
        step=steps[-1]["step"],
        rows=len(steps),
        loss=sum(losses) / len(losses) if losses else None,
        val_loss=held_out[-1] if held_out else None,
        seconds_per_step=sum(seconds) / len(seconds) if seconds else None,
        samples_per_second=median(rates) if rates else None,
        written=written,
    )


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a file that may be large."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - TAIL_BYTES, 0))
        lines = file.read().split(b"\n")
    rows = []
    for line in lines[1:] if size > TAIL_BYTES else lines:
        row = metrics_row(line)
        if row:
            rows.append(row)
    return rows


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """A row of logs/metrics.jsonl; None for a line that is damaged, or not yet whole."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row.get("step"), int) else None


def _numbers(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]
