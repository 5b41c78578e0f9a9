"""Files that appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnitune.io.files import atomic_folder, atomic_path, is_whole, lock, portable, sealed

pytestmark = pytest.mark.unit


@pytest.mark.slow
def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with atomic_path(tmp_path / "a.tar") as temporary:
        temporary.write_bytes(b"whole")
    pid = f".{os.getpid()}."
    left, running = (temporary.with_name(temporary.name.replace(pid, f".{n}.")) for n in (ended.pid, os.getppid()))
    elsewhere = tmp_path / f".a.tar.0123456789ab.{ended.pid}.0123456789abcdef.tmp"
    for path in (left, running, elsewhere):
        path.write_bytes(b"half")
    with atomic_path(tmp_path / "a.tar") as temporary:
        temporary.write_bytes(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", running.name, elsewhere.name}


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.tar'"), atomic_path(tmp_path / "a.tar"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    with lock(tmp_path / "lock", "held"), pytest.raises(ValueError, match="held"):
        lock(tmp_path / "lock", "held")
    lock(tmp_path / "lock", "held").close()


def test_a_seal_is_broken_by_any_change() -> None:
    content = {"b": [1, 2.5, None], "a": {"x": "ü"}}
    whole = sealed(content)
    assert is_whole(whole) and {**whole, "seal": None} == {**content, "seal": None}
    assert sealed(whole) == whole
    assert is_whole(json.loads(json.dumps(whole))) and is_whole(dict(reversed(whole.items())))
    for broken in (content, {**whole, "a": {"x": "u"}}, {**whole, "c": 1}, {**whole, "seal": "0" * 64}):
        assert not is_whole(broken)
    del whole["b"]
    assert not is_whole(whole)


def test_paths_say_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable(Path("a/b/c")) == portable(tmp_path / "a/b/c") == "a/b/c"
    assert portable(tmp_path.parent / "other/b/c") == "b/c"


def test_the_working_directory_is_filled_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("")
    inode = tmp_path.stat().st_ino
    with atomic_folder(Path()) as folder:
        (folder / "new").write_text("whole")
    assert [path.name for path in Path().iterdir()] == ["new"]
    assert tmp_path.stat().st_ino == inode
