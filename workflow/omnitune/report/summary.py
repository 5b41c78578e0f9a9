"""What experiments have learned, for a terminal: `python -m omnitune.report.summary experiments/*/report`."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.paths import BASE, EvaluatedStep

MEASURE = "check_passed"
HEAD = ("experiment", "task", "base", "tuned", "change", "95 % interval")
RESAMPLES = 10_000


def interval(changes: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over prompts, by bootstrap; `changes` are from base to tuned, one for each prompt."""
    drawn = np.random.default_rng(0).choice(changes, (RESAMPLES, len(changes))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def summary(reports: Sequence[Path]) -> str:
    """A line for each experiment and benchmark that has a check: its share of right pictures by base and tuned weights.

    Args:
        reports: folders with a scores.csv and an index.html.
    """
    lines = [HEAD, *(line for report in reports for line in _lines(report))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    table = []
    for line in lines:
        cells = [
            cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    pages = [f"  {(report / 'index.html').resolve()}" for report in reports]
    head_line = f"{MEASURES[MEASURE].label.capitalize()}, on prompts that no training has seen:"
    return "\n".join([head_line, *table, "", "Open the reports in a browser:", *pages])


def _lines(report: Path) -> Iterator[tuple[str, ...]]:
    """The cells of HEAD for each benchmark of a report; the newest step counts, as it was trained."""
    scores = pd.read_csv(report / "scores.csv", dtype={"step": str})
    if MEASURE not in scores:
        return
    for benchmark, own in scores.dropna(subset=[MEASURE]).groupby("benchmark", sort=False):
        by_step = own.pivot(index="key", columns="step", values=MEASURE).astype(float)
        last = max(step for step in map(EvaluatedStep.parse, own["step"].unique()) if not step.ema)
        if last == BASE:
            continue
        base, tuned = by_step[str(BASE)], by_step[str(last)]
        low, high = interval((tuned - base).to_numpy())
        shares = (
            f"{100 * base.mean():.0f} %",
            f"{100 * tuned.mean():.0f} %",
            f"{100 * (tuned - base).mean():+.0f} points",
        )
        yield report.parent.name, str(benchmark), *shares, f"{100 * low:+.0f} to {100 * high:+.0f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="experiments/{experiment}/report")
    print(summary(parser.parse_args().reports))


if __name__ == "__main__":
    main()
