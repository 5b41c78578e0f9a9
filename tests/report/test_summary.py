"""What is printed at the end of a run comes from the scores that it has written."""

from pathlib import Path

import numpy as np
import pytest

from helpers.runs import write_run
from omnitune.report.summary import interval, summary

pytestmark = pytest.mark.unit


@pytest.mark.slow
def test_lines_give_each_checked_benchmark_before_and_after(tmp_path: Path) -> None:
    folder = write_run(tmp_path).parent
    lines = summary([folder]).splitlines()
    assert lines[2].split()[:8] == [folder.parent.name, "scenes", "12", "%", "94", "%", "+81", "points"]
    low, _, high = lines[2].split()[8:]
    assert 50 < int(low) < 81 < int(high) <= 100
    assert lines[3] == "" and lines[-1].strip() == str((folder / "index.html").resolve())


def test_an_interval_holds_the_mean_and_narrows_with_prompts() -> None:
    few, many = (interval(np.array([1.0, 1.0, 0.0, -1.0] * times)) for times in (5, 50))
    assert few[0] < many[0] < 0.25 < many[1] < few[1]
    assert interval(np.zeros(60)) == (0, 0)
