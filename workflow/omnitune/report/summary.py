"""What experiments have learned, for a terminal: `python -m omnitune.report.summary experiments/*/report`."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.report.scores import ALL

MEASURE = "check_passed"
HEAD = ("experiment", "task", "base", "tuned", "change", "95 % interval", "verdict")
LEFT = (0, 1, 6)  # columns of words


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
            cell.ljust(w) if k in LEFT else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    pages = [f"  {(report / 'index.html').resolve()}" for report in reports]
    head_line = f"{MEASURES[MEASURE].label.capitalize()}, on prompts that no training has seen:"
    return "\n".join([head_line, *table, "", "Open the reports in a browser:", *pages])


def _lines(report: Path) -> Iterator[tuple[str, ...]]:
    """The cells of HEAD for each benchmark of a report; the newest step counts, as it was trained."""
    scores = pd.read_csv(report / "scores.csv")
    own = scores[(scores["measure"] == MEASURE) & (scores["task"] == ALL) & scores["verdict"].notna()]
    trained = own[own["row"].str.fullmatch(r"step \d+")]  # no average, and no other scale of an adapter
    for benchmark, found in trained.groupby("benchmark", sort=False):
        last = found.iloc[-1]
        shares = (
            f"{100 * last['base_mean']:.0f} %",
            f"{100 * last['mean']:.0f} %",
            f"{100 * last['difference']:+.0f} points",
        )
        interval = f"{100 * last['low']:+.0f} to {100 * last['high']:+.0f}" if pd.notna(last["low"]) else "none"
        yield report.parent.name, str(benchmark), *shares, interval, str(last["verdict"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="experiments/{experiment}/report")
    print(summary(parser.parse_args().reports))


if __name__ == "__main__":
    main()
