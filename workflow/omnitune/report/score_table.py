"""A benchmark's score table for the page: text of each cell, what it sorts by, and its interval as a small drawing."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from omnitune.config.choices import MEASURES
from omnitune.paths import BASE
from omnitune.report.scores import Score, show, show_change, show_interval

WIDTH, HEIGHT = 120, 16  # of the drawing, in its own units


def table_rows(lines: Sequence[Score], primary: str | None) -> list[dict[str, Any]]:
    """A row for each line; those of a measure are drawn to one scale."""
    reach = {measure: _reach(lines, measure) for measure in {line.measure for line in lines}}
    return [_row(line, primary, reach[line.measure]) for line in lines]


def _reach(lines: Sequence[Score], measure: str) -> float:
    """The largest distance from zero of what is drawn of a measure."""
    found = [line.against_base for line in lines if line.measure == measure]
    ends = [abs(end) for c in found for end in (c.interval.low, c.interval.high, c.difference) if math.isfinite(end)]
    return max(ends, default=0)


def _row(line: Score, primary: str | None, reach: float) -> dict[str, Any]:
    found, measure = line.against_base, line.measure
    is_base = line.step == BASE
    return {
        "task": line.task,
        "measure": MEASURES[measure].label,
        "higher": MEASURES[measure].higher_is_better,
        "primary": measure == primary,
        "row": line.row,
        "n": found.n,
        "missing": found.missing,
        "mean": show(measure, found.mean),
        "mean_interval": show_interval(measure, found.mean_interval),
        "change": "" if is_base else show_change(measure, found.difference),
        "interval": "" if is_base else show_interval(measure, found.interval, sign=True),
        "drawing": "" if is_base else drawing(found.interval.low, found.difference, found.interval.high, reach),
        "verdict": "" if is_base else found.verdict,
        "sort": {"mean": _number(found.mean), "change": "" if is_base else _number(found.difference)},
    }


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def drawing(low: float, value: float, high: float, reach: float) -> Markup:
    """An interval as a line around its middle, and zero as a tick; empty where there is no interval."""
    if math.isnan(low):
        return Markup("")
    scale = (WIDTH / 2 - 4) / reach if reach else 0
    left, middle, right = (round(WIDTH / 2 + scale * x, 1) for x in (low, value, high))
    return Markup(  # made of numbers alone
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<path class="zero" d="M{WIDTH // 2} 0V{HEIGHT}"/><path d="M{left} 8H{right}M{left} 4V12M{right} 4V12"/>'
        f'<circle cx="{middle}" cy="8" r="3.5"/></svg>'
    )
