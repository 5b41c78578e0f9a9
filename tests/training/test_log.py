"""What a training writes down for people."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from omnitune.config import ExperimentOptions
from omnitune.training.log import MetricsLog, note_start

pytestmark = pytest.mark.unit


def test_each_start_leaves_a_line(tmp_path: Path) -> None:
    for first_step in (1, 41):
        note_start(tmp_path / "logs", first_step, torch.device("cpu"), 2)
    rows = [json.loads(line) for line in (tmp_path / "logs/starts.jsonl").read_text().splitlines()]
    assert [(row["first_step"], row["processes"]) for row in rows] == [(1, 2), (41, 2)]
    assert all(row["device"] and datetime.fromisoformat(row["time"]).tzinfo for row in rows)


def test_rows_of_steps_that_come_again_and_damaged_ones_are_dropped(tmp_path: Path) -> None:
    path, kept = tmp_path / "metrics.jsonl", b'{"step": 1}\n{"step": 2, "loss": 0.5}\n'
    path.write_bytes(kept + b'5\n{}\n\xff\n{"step": "x"}\n' + b"[" * 5_000 + b'\n{"step": 3}\n{"step": 4, "lo')
    content = {"name": "x", "data": {"data_path": "d.yml"}, "model": {"pretrained_model_path": "demo"}}
    options = ExperimentOptions.model_validate({**content, "logger": {"log_with": []}})
    MetricsLog(options, tmp_path, first_step=3).close()
    assert path.read_bytes() == kept
