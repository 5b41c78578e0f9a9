"""What a training writes down for people."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from omnitune.training.log import note_start

pytestmark = pytest.mark.unit


def test_each_start_leaves_a_line(tmp_path: Path) -> None:
    for first_step in (1, 41):
        note_start(tmp_path / "logs", first_step, torch.device("cpu"), 2)
    rows = [json.loads(line) for line in (tmp_path / "logs/starts.jsonl").read_text().splitlines()]
    assert [(row["first_step"], row["processes"]) for row in rows] == [(1, 2), (41, 2)]
    assert all(row["device"] and datetime.fromisoformat(row["time"]).tzinfo for row in rows)
