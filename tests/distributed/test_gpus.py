"""The GPUs of one machine: counted, and each job of a workflow takes its own."""

import os
import threading
from pathlib import Path

import pytest

from omnitune.distributed import gpus
from omnitune.distributed.gpus import SHARED, VISIBLE, machine_gpus, reserved_gpus, shared_gpus

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with four GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0.01)
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv(SHARED, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("2, 0", ["2", "0"]),
        ("1,7,2", ["1"]),
        ("GPU-8932f937,MIG-1", ["GPU-8932f937", "MIG-1"]),
    ],
)
def test_what_processes_see_is_counted(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert machine_gpus() == expected
    assert shared_gpus(local=True) == expected
    assert os.environ.get(SHARED) == (",".join(expected) or None)
    assert shared_gpus(local=False) == []
    assert SHARED not in os.environ


def test_a_machine_without_gpus_shares_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in machine.glob("nvidia*"):
        path.unlink()
    monkeypatch.setenv(VISIBLE, "0,1")
    assert shared_gpus(local=True) == []
    with reserved_gpus(0):
        assert os.environ[VISIBLE] == "0,1"


def test_jobs_take_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED, "0,1,2")
    monkeypatch.setenv(VISIBLE, "0,1,2")
    with reserved_gpus(2):
        assert os.environ[VISIBLE] == "0,1"
        with reserved_gpus(1):
            assert os.environ[VISIBLE] == "2"
        with reserved_gpus(0):
            assert os.environ[VISIBLE] == ""
    with reserved_gpus(3):
        assert os.environ[VISIBLE] == "0,1,2"
    with pytest.raises(ValueError, match=r"gpus_per_node: 4 is not allowed: this machine has 3 GPUs"), reserved_gpus(4):
        pass


def test_a_job_waits_for_what_another_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED, "0,1")
    taken = threading.Event()

    def other() -> None:
        with reserved_gpus(2):
            taken.set()

    with reserved_gpus(1):
        thread = threading.Thread(target=other)
        thread.start()
        assert not taken.wait(0.1)
    thread.join(5)
    assert taken.is_set()


def test_in_the_job_of_a_cluster_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheduler has given it GPUs, which others may know by the same numbers."""
    monkeypatch.setenv(VISIBLE, "0")
    with reserved_gpus(8):
        assert os.environ[VISIBLE] == "0"
    assert not gpus.LOCKS.exists()
