"""What experiments have learned, for a terminal: `python -m omnitune.report.summary experiments/*/report`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.paths import BASE

MEASURE = "check_passed"


def summary(reports: Sequence[Path]) -> str:
    """A line for each experiment and benchmark that has a check: its share of right pictures by base and tuned weights.

    Args:
        reports: folders with a scores.csv and an index.html.
    """
    lines = []
    for report in reports:
        scores = pd.read_csv(report / "scores.csv", dtype={"step": str})
        if MEASURE not in scores:
            continue
        for benchmark, own in scores.dropna(subset=[MEASURE]).groupby("benchmark", sort=False):
            means = own.groupby("step", sort=False)[MEASURE].mean()
            base, tuned, last = means.get(str(BASE)), means.iloc[-1], means.index[-1]
            if base is not None and last != str(BASE):
                lines.append((report.parent.name, str(benchmark), f"{100 * base:.0f} %", f"{100 * tuned:.0f} %"))
    head = ("experiment", "task", "base", "tuned")
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    table = [
        f"{name:<{widths[0]}}  {task:<{widths[1]}}  {base:>{widths[2]}}  {tuned:>{widths[3]}}"
        for name, task, base, tuned in (head, *lines)
    ]
    pages = [f"  {(report / 'index.html').resolve()}" for report in reports]
    head_line = f"{MEASURES[MEASURE].label.capitalize()}, on prompts that no training has seen:"
    return "\n".join([head_line, *table, "", "Open the reports in a browser:", *pages])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="experiments/{experiment}/report")
    print(summary(parser.parse_args().reports))


if __name__ == "__main__":
    main()
