"""The lines of the score tables: each row of weights against the base, by benchmark, task and measure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from omnitune.config.choices import MEASURES
from omnitune.evaluation.statistics import Comparison, Interval, compare
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import Evaluation

ALL = "all"  # tasks of a benchmark together
MOST_PROMPTS = 1_000_000  # that a sentence names


@dataclass(frozen=True)
class Score:
    """A line: what some weights reach in a measure on a benchmark's prompts of a task, or of all, beside the base.

    Attributes:
        benchmark, task, measure: names; the task is ALL for all prompts.
        step: whose weights these are.
        against_base: the base's own line is compared with itself.
    """

    benchmark: str
    task: str
    measure: str
    step: EvaluatedStep
    against_base: Comparison

    @property
    def row(self) -> str:
        """Name of the weights."""
        return self.step.label


def score_lines(evaluation: Evaluation) -> list[Score]:
    """All lines of a benchmark, of all prompts and of each task where there are several; primary measure first."""
    tasks, primary = tasks_of(evaluation), primary_of(evaluation)
    measures = sorted(measures_of(evaluation), key=lambda name: name != primary)
    return [
        line
        for task in (ALL, *(tasks if len(tasks) > 1 else ()))
        for measure in measures
        for line in _lines(evaluation, task, measure)
    ]


def tasks_of(evaluation: Evaluation) -> list[str]:
    """Tasks of its prompts, by the names that they give them."""
    return sorted({prompt.task for prompt in evaluation.entry.prompts})


def measures_of(evaluation: Evaluation) -> list[str]:
    """Measures that some prompt has, in the order of their table."""
    found = {name for scores in evaluation.scores.values() for row in scores["per_prompt"] for name in row}
    return MEASURES.among(found)


def primary_of(evaluation: Evaluation) -> str | None:
    """The measure that a verdict is about: the benchmark's `primary`, or the first by `headline`; None without any."""
    if evaluation.entry.benchmark.primary:
        return evaluation.entry.benchmark.primary
    found = measures_of(evaluation)
    return min(found, key=lambda name: MEASURES[name].headline or math.inf) if found else None


def values_of(
    evaluation: Evaluation, steps: Sequence[EvaluatedStep], measure: str, task: str = ALL
) -> tuple[np.ndarray, np.ndarray]:
    """(values, measured): [steps, prompts], NaN where one is missing, and which prompts are asked for the measure.

    Of a prompt with several images it is their mean: they are no prompts of their own, which would narrow intervals.
    One whose images all failed is asked for what others of its task type are.
    """
    keys: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for prompt in evaluation.entry.prompts:
        if task in (ALL, prompt.task):
            keys.setdefault(prompt.line_key, []).append(prompt.key)
            kinds[prompt.line_key] = prompt.task_type
    by_key = [{row["key"]: row for row in evaluation.scores[step]["per_prompt"]} for step in steps]
    found = [
        [[rows[key][measure] for key in own if measure in rows.get(key, ())] for own in keys.values()]
        for rows in by_key
    ]
    values = np.array([[_mean(own) for own in row] for row in found], dtype=float)
    measured = [any(own) for own in zip(*found, strict=True)]
    asked = {kind for kind, known in zip(kinds.values(), measured, strict=True) if known}
    failed = [all("failed" in rows.get(key, ()) for rows in by_key for key in own) for own in keys.values()]
    lost = [gone and kind in asked for gone, kind in zip(failed, kinds.values(), strict=True)]
    return values, np.array(measured, dtype=bool) | np.array(lost, dtype=bool)


def _mean(values: Sequence[float | None]) -> float:
    """Of those that there are; NaN without any."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else math.nan


def _lines(evaluation: Evaluation, task: str, measure: str) -> list[Score]:
    steps = evaluation.steps
    values, measured = values_of(evaluation, steps, measure, task)
    if not measured.any():
        return []
    compared = compare(values, values[steps.index(BASE)], measured, MEASURES[measure].higher_is_better)
    name = evaluation.entry.name
    return [Score(name, task, measure, step, found) for step, found in zip(steps, compared, strict=True)]


# ------------------------------------------------------------------ as text


def show(measure: str, value: float) -> str:
    """A measure's value as text; shares in percent."""
    entry = MEASURES[measure]
    if not math.isfinite(value):
        return "none"
    return f"{100 * value:.1f} %" if entry.share else f"{value:.{entry.digits}f}"


def show_change(measure: str, change: float) -> str:
    """A change with its sign; shares in percentage points."""
    entry = MEASURES[measure]
    if not math.isfinite(change):
        return "none"
    return f"{100 * change:+.1f} points" if entry.share else f"{change:+.{entry.digits}f}"


def show_interval(measure: str, interval: Interval, sign: bool = False) -> str:
    """Both ends in brackets, shares in percent without the sign for it; "" where there is no interval."""
    if math.isnan(interval.low):
        return ""
    entry = MEASURES[measure]
    scale, digits = (100, 1) if entry.share else (1, entry.digits)
    ends = (f"{scale * end:{'+' if sign else ''}.{digits}f}" for end in (interval.low, interval.high))
    return f"[{', '.join(ends)}]"
