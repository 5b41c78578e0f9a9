"""The state of experiments for a terminal, once or kept fresh, and for scripts."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from omnitune.errors import printable
from omnitune.status.collect import ExperimentStatus, duration

COLOURS = {"running": "green", "waiting": "yellow", "failed": "red", "stopped": "red", "done": "dim"}


def status_table(found: Sequence[ExperimentStatus]) -> RenderableType:
    """A row for each experiment, and below what a person should read of them."""
    table = Table("experiment", "stage", "state", "step", "loss", "held-out", "samples/s", "left", "jobs", box=None)
    for each in found:
        colour = COLOURS.get(each.state, "")
        count = f" {each.done}/{each.total}" if each.total > 1 else ""
        table.add_row(
            each.experiment,
            f"{each.stage}{count}",
            f"[{colour}]{each.state}[/]" if colour else each.state,
            f"{_known(each.step, ',d')}/{_known(each.steps, ',d')}",
            _known(each.loss, ".4f"),
            _known(each.val_loss, ".4f"),
            _known(each.samples_per_second, ".4g"),
            "-" if each.seconds_left is None else duration(each.seconds_left),
            _jobs(each),
        )
    notes = [f"{each.experiment}: {note}" for each in found for note in each.notes]
    return Group(table, *(Text(printable(note)) for note in (["", *notes] if notes else [])))


def _jobs(each: ExperimentStatus) -> str:
    counts = {"running": each.running, "waiting": each.waiting, "failed": each.failed}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "-"


def _known(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def status_json(found: Sequence[ExperimentStatus]) -> str:
    """A list of objects, with the fields of ExperimentStatus."""
    return json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False)


def follow(collect: Callable[[], Sequence[ExperimentStatus]], interval: float) -> None:
    """Keeps the table fresh until it is interrupted (Ctrl-C); where it cannot, as in a file, prints it anew."""
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with suppress(KeyboardInterrupt), live or nullcontext():
        while True:
            table = status_table(collect())
            if live:
                live.update(table, refresh=True)
            else:
                console.print(table)
            time.sleep(interval)
