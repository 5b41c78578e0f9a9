"""A lock that says who holds it: also where locks do not reach other machines, or outlive one that is dead."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omnitune.io import holder
from omnitune.io.files import lock, write_json, write_text
from omnitune.io.holder import lock_with_note

pytestmark = pytest.mark.unit

SAYS = "x: another training is writing here"
HOLD = "import sys; from pathlib import Path; from omnitune.io.holder import lock_with_note\n"
HOLD += "held = lock_with_note(Path('lock'), ''); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.05)
    return tmp_path / "lock.json"


def foreign(note: Path, **others: object) -> None:
    facts = {"host": "node7", "kernel": "another", "process": 12, "slurm_job": "55", "since": "2026-01-01T00:00:00"}
    write_json(note, facts | others)


@contextmanager
def kept_up(note: Path) -> Iterator[None]:
    """As a process on another machine does."""
    ended = threading.Event()
    thread = threading.Thread(target=holder._keep_up, args=(note, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_note_says_who_holds_a_lock_and_is_kept_up(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with lock_with_note(note.with_suffix(""), SAYS):
        found, before = json.loads(note.read_text()), note.stat().st_mtime_ns
        assert (found["process"], found["slurm_job"]) == (os.getpid(), "77")
        with pytest.raises(ValueError, match=rf"{SAYS}: process {os.getpid()} on .+ of SLURM job 77, since .+ Wait"):
            lock_with_note(note.with_suffix(""), SAYS)
        time.sleep(0.2)
        assert note.stat().st_mtime_ns > before
    assert list(note.parent.iterdir()) == []


def test_a_lock_that_nobody_has_any_more_is_free(note: Path) -> None:
    held = lock_with_note(note.with_suffix(""), SAYS)
    del held
    gc.collect()
    assert not note.exists()
    lock_with_note(note.with_suffix(""), SAYS).close()


@pytest.mark.slow
def test_what_a_killed_process_of_this_machine_has_left_is_no_hindrance(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, cwd=note.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"process {process.pid} on"):
            lock_with_note(note.with_suffix(""), SAYS)
        process.kill()
    assert note.exists()
    monkeypatch.setattr(holder, "_is_kept_up", lambda *_: pytest.fail("there is nothing to wait for"))
    with lock_with_note(note.with_suffix(""), SAYS):
        assert json.loads(note.read_text())["process"] == os.getpid()


def test_who_lives_on_a_machine_whose_locks_are_not_seen_holds_it(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "WATCHED_BEATS", 200)
    foreign(note)
    with kept_up(note), pytest.raises(ValueError, match=rf"{SAYS}: process 12 on node7 of SLURM job 55, .* Wait"):
        lock_with_note(note.with_suffix(""), SAYS)
    assert note.exists() and note.with_suffix("").exists()  # which are the other's


@pytest.mark.parametrize("left", ["note", "damaged", "no object"])
def test_who_is_dead_on_another_machine_holds_nothing(note: Path, left: str) -> None:
    if left == "note":
        foreign(note)
    else:
        write_text(note, "{" if left == "damaged" else "[1]")
    with lock_with_note(note.with_suffix(""), SAYS):
        assert json.loads(note.read_text())["process"] == os.getpid()


def test_a_lock_that_outlives_its_machine_is_explained(note: Path) -> None:
    """As on a file system that keeps the lock of a dead client."""
    foreign(note, slurm_job=None)
    os.utime(note, (time.time() - 4000,) * 2)
    with (
        lock(note.with_suffix(""), "held"),
        pytest.raises(ValueError, match=r"process 12 on node7, since .*, not heard of for 400\d s\. .*: rm .*/lock$"),
    ):
        lock_with_note(note.with_suffix(""), SAYS)
    with lock(note.with_suffix(""), "held"):
        note.unlink()
        with pytest.raises(ValueError, match=rf"^{SAYS}\. Wait for it or stop it\.$"):
            lock_with_note(note.with_suffix(""), SAYS)
