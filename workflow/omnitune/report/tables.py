"""The figures of a report as tables for spreadsheets: scores.csv and metrics.csv beside the page."""

from pathlib import Path
from typing import Any

import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.io.files import write_text
from omnitune.report.collect import Evaluation, Run


def write_tables(run: Run, folder: Path) -> None:
    """Writes scores.csv (a row for each benchmark, step and prompt) and metrics.csv (those of logs/metrics.jsonl)."""
    rows = [row for evaluation in run.evaluations for row in _scores(evaluation)]
    measures = [name for name in MEASURES if any(name in row for row in rows)]
    scores = pd.DataFrame(rows, columns=["benchmark", "step", "key", "task_type", *measures])
    write_text(folder / "scores.csv", scores.to_csv(index=False))
    metrics = pd.DataFrame(run.metrics, columns=None if run.metrics else ["step"])
    write_text(folder / "metrics.csv", metrics.to_csv(index=False))


def _scores(evaluation: Evaluation) -> list[dict[str, Any]]:
    name = evaluation.entry.name
    return [
        {"benchmark": name, "step": str(step), **row}
        for step in evaluation.steps
        for row in evaluation.scores[step]["per_prompt"]
    ]
