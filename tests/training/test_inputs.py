"""What the processes of a training are told."""

from pathlib import Path

import pytest

from omnitune.distributed.layout import Layout
from omnitune.training.inputs import TrainingFiles, layout_arguments, parse_arguments

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("reason", ["", "ddp needs 1.0 GB of 2.0 GB per process"])
def test_processes_read_what_the_launcher_writes(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = TrainingFiles(*(Path(name) for name in ("c", "b", "t", "i", "e", "o")))
    layout = Layout("hsdp", 8, 4, reason)
    monkeypatch.setattr("sys.argv", ["loop", *files.arguments(), *layout_arguments(layout)])
    assert parse_arguments(None) == (files, layout)
