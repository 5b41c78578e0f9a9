"""The figures of a report as tables for spreadsheets, beside the page."""

import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.io.files import write_text
from omnitune.paths import BASE
from omnitune.report.collect import Evaluation, Run
from omnitune.report.commands import command_of
from omnitune.report.scores import ALL, Score

COLUMNS = (
    *("benchmark", "task", "measure", "row", "n", "missing"),
    *("mean", "base_mean", "difference", "low", "high", "verdict"),
)
IMAGE_COLUMNS = (
    *("benchmark", "row", "key", "task", "instruction", "image"),
    *("sha256", "seed", "width", "height", "command"),
)
DIGITS = 6


def write_tables(run: Run, lines: Sequence[Score], folder: Path) -> None:
    """Writes scores.csv, a row for each line of the score tables, generations.csv, one for each image, and metrics.csv.

    Args:
        run: what the report is of.
        lines: of all its benchmarks.
        folder: where the page is.
    """
    rows = [*map(_score, lines), *(row for evaluation in run.evaluations for row in _sets(evaluation))]
    scores = pd.DataFrame(rows, columns=list(COLUMNS)).round(DIGITS)
    write_text(folder / "scores.csv", scores.to_csv(index=False))
    images = [row for evaluation in run.evaluations for row in _images(evaluation, folder)]
    measures = MEASURES.among(name for row in images for name in row)
    generations = pd.DataFrame(images, columns=[*IMAGE_COLUMNS, *measures])
    write_text(folder / "generations.csv", generations.to_csv(index=False))
    metrics = pd.DataFrame(run.metrics, columns=None if run.metrics else ["step"])
    write_text(folder / "metrics.csv", metrics.to_csv(index=False))


def _score(line: Score) -> dict[str, Any]:
    """A row of scores.csv; that of the base has no difference."""
    found = line.against_base
    row = {
        **{"benchmark": line.benchmark, "task": line.task, "measure": line.measure, "row": line.row},
        **{"n": found.n, "missing": found.missing, "mean": found.mean, "base_mean": found.base_mean},
    }
    if line.step == BASE:
        return row
    interval = {"low": found.interval.low, "high": found.interval.high}
    return {**row, "difference": found.difference, **interval, "verdict": found.verdict}


def _sets(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of scores.csv of measures of all images together, which have neither an interval nor a verdict."""
    own = {step: evaluation.scores[step].get("sets", {}) for step in evaluation.steps}
    rows: list[dict[str, Any]] = []
    for step, found in own.items():
        for measure, facts in found.items():
            known = {"benchmark": evaluation.entry.name, "task": ALL, "measure": measure, "row": step.label}
            row = {**known, "n": facts["n"], "missing": evaluation.missing(step), "mean": facts["value"]}
            if base := own[BASE].get(measure):
                row["base_mean"] = base["value"]
                row |= {} if step == BASE else {"difference": facts["value"] - base["value"]}
            rows.append(row)
    return rows


def _images(evaluation: Evaluation, folder: Path) -> list[dict[str, Any]]:
    """Rows of generations.csv: where each image lies, seen from the table, what was asked, and what it reaches."""
    rows = []
    for step in evaluation.steps:
        measured = {row["key"]: row for row in evaluation.scores[step]["per_prompt"]}
        for prompt in evaluation.entry.prompts:
            drawn = evaluation.generations[step][prompt.key]
            width, height = drawn.get("size") or (None, None)
            image = evaluation.image(step, prompt.key)
            rows.append(
                {
                    "benchmark": evaluation.entry.name,
                    "row": step.label,
                    "key": prompt.key,
                    "task": prompt.task,
                    "instruction": prompt.instruction,
                    "image": Path(os.path.relpath(image, folder)).as_posix() if image else None,
                    **{"sha256": drawn["sha256"], "seed": drawn.get("seed"), "width": width, "height": height},
                    "command": command_of(evaluation, step, prompt),
                    **{name: measured[prompt.key][name] for name in MEASURES.among(measured[prompt.key])},
                }
            )
    return rows
