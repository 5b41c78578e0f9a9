"""What is printed at the end of a run comes from the scores that it has written."""

from pathlib import Path

import pytest

from helpers.runs import write_run
from omnitune.report.summary import summary

pytestmark = pytest.mark.unit


@pytest.mark.slow
def test_lines_give_each_checked_benchmark_before_and_after(tmp_path: Path) -> None:
    folder = write_run(tmp_path).parent
    lines = summary([folder]).splitlines()
    assert lines[2].split()[:8] == [folder.parent.name, "scenes", "12", "%", "94", "%", "+81", "points"]
    low, _, high, verdict = lines[2].split()[8:]
    assert 50 < int(low) < 81 < int(high) <= 100 and verdict == "better"
    assert lines[3] == "" and lines[-1].strip() == str((folder / "index.html").resolve())
