"""Locks and temporary files follow no link, empty nothing, cannot be guessed, and let one process at a time write."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.projects import write_shards
from omnitune.checkpoints.states import remove_leftovers
from omnitune.config import Benchmark
from omnitune.evaluation.prompts import write_protocol
from omnitune.io.files import atomic_folder, atomic_path, lock, lock_folder, sha256_of, write_text
from omnitune.sharding.digests import write_shard_digests
from omnitune.sharding.shard import ImageLimits, write_shard
from omnitune.sharding.tars import DiskCache
from omnitune.sharding.write_index import write_index

pytestmark = pytest.mark.unit


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "precious"
    write_text(path, "precious")
    return path


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, precious: Path) -> None:
    for target in (precious, tmp_path / "nowhere"):
        (tmp_path / ".train.lock").symlink_to(target)
        with pytest.raises(ValueError, match=r"\.train\.lock: is a link, which no lock is\. Remove it\."):
            lock(tmp_path / ".train.lock", "held")
        (tmp_path / ".train.lock").unlink()
    assert precious.read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_lock_empties_nothing(tmp_path: Path, precious: Path) -> None:
    os.link(precious, tmp_path / "lock")
    lock(tmp_path / "lock", "held").close()
    assert precious.read_text() == "precious"


def test_a_lock_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(ValueError, match=r"lock: is no plain file"):
        lock(tmp_path / "lock", "held")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: cannot be opened \(Is a directory\)"):
        lock(tmp_path / "folder", "held")


def test_many_processes_take_a_lock_one_after_the_other(tmp_path: Path) -> None:
    """Also while others remove its file."""
    inside, most, taken = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, taken
        for _ in range(200):
            try:
                with lock(tmp_path / "lock", "held"):
                    with guard:
                        inside += 1
                        taken += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except ValueError as error:
                assert str(error) == "held"

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken and most == 1
    assert not (tmp_path / "lock").exists()


def test_what_lies_in_the_way_of_a_temporary_name_stops_nothing(tmp_path: Path, precious: Path) -> None:
    names = set()
    for _ in range(2):
        with atomic_path(tmp_path / "a.tar") as temporary:
            names.add(temporary.name)
            machine, _, secret = temporary.name.split(".")[3:6]
            assert len(secret) == 16 and not temporary.is_symlink()
            temporary.write_bytes(b"whole")
        gone = 2**22 + 1  # beyond what Linux numbers processes with
        for name in (f".a.tar.{machine}.x.{secret}.tmp", f".a.tar.{os.uname().nodename}.evil.tmp"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(precious)
        (tmp_path / f".a.tar.{machine}.{gone}.{'0' * 16}.tmp").mkdir()
        (tmp_path / f".a.tar.{machine}.{gone}.{'1' * 16}.tmp").symlink_to(precious.parent)
    assert len(names) == 2 and (tmp_path / "a.tar").read_bytes() == b"whole"
    assert precious.read_text() == "precious"


def test_what_a_killed_save_seems_to_have_left_may_be_a_link(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "checkpoint-5.tmp").symlink_to(precious.parent)
    (tmp_path / "x" / "checkpoint-6.tmp").write_text("a file")
    remove_leftovers(tmp_path / "x")
    assert not list((tmp_path / "x").iterdir()) and precious.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_modes_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    """Also of what a library writes, which would make it private."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        with atomic_folder(tmp_path / "folder") as folder:
            save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", tmp_path / "folder" / "a.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as first:
        with pytest.raises(ValueError, match=r"/a: another process is writing here"), atomic_folder(tmp_path / "a"):
            pass
        with pytest.raises(ValueError, match=r"/a: another process is writing here"):
            lock_folder(tmp_path / "a")
        (first / "x").write_text("x")
    assert (tmp_path / "a" / "x").read_text() == "x"
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as second:
        (second / "y").write_text("y")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def one_shard(folder: Path) -> list[Path]:
    part = folder / "shards/a-00000.parquet"
    if not part.exists():
        write_shards(folder / "shards/index.parquet", {"a": "xy"})
    return [part]


def index(folder: Path) -> Path:
    write_index(one_shard(folder / "parts"), folder / "shards/index.parquet")
    return folder / "shards/index.parquet"


def digests(folder: Path) -> Path:
    write_shard_digests(one_shard(folder / "parts"), folder / "digests")
    return folder / "digests/a-00000.sha256"


def protocol(folder: Path) -> Path:
    write_protocol(Benchmark(prompts="p"), [], folder / "b/protocol.json", folder / "b/scoring.json")
    return folder / "b/scoring.json"


def tar(folder: Path) -> Path:
    write_text(folder / "m.jsonl", "")
    limits = ImageLimits(4096, 4096, 2048)
    write_shard(folder / "m.jsonl", folder / "a-00000.tar", folder / "a-00000.parquet", limits)
    return folder / "a-00000.parquet"


STAGES = [(index, ".shards.lock"), (digests, ".digests.lock"), (protocol, ".b.lock"), (tar, ".a-00000.lock")]


@pytest.mark.parametrize(("stage", "name"), STAGES)
def test_two_at_once_of_a_stage_are_safe(tmp_path: Path, stage: Callable[[Path], Path], name: str) -> None:
    """The second one is refused and changes nothing; where many try, those that get through leave a whole result."""
    written = stage(tmp_path)
    before = written.read_bytes()
    written.unlink()
    with lock(tmp_path / name, "held"), pytest.raises(ValueError, match="another process is writing"):
        stage(tmp_path)
    assert not written.exists()
    said: list[str] = []

    def work() -> None:
        for _ in range(10):
            try:
                stage(tmp_path)
            except ValueError as error:
                said.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written.read_bytes() == before and all("another process is writing" in text for text in said)
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in {".lock", ".tmp"}]


def test_a_cache_that_others_can_write_to_follows_no_link(tmp_path: Path, precious: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1 << 20)
    path = cache._path("key")
    path.parent.mkdir(parents=True)
    path.with_suffix(".tmp").symlink_to(precious)
    cache.put("key", b"data")
    assert cache.get("key") == b"data"
    (path.parent / ".lock").unlink()
    (path.parent / ".lock").symlink_to(precious)
    cache.put("key", b"other")
    assert precious.read_text() == "precious" and cache.get("key") == b"data"


def test_a_file_that_was_changed_and_given_its_time_back_is_hashed_anew(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * (2 << 20))
    before, times = sha256_of(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns and sha256_of(path) != before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lock_that_nobody_has_any_more_is_free(tmp_path: Path) -> None:
    """As after a training in this process that has failed or ended."""
    held = lock(tmp_path / "a.lock", "taken")
    with pytest.raises(ValueError, match="taken"):
        lock(tmp_path / "a.lock", "taken")
    del held
    lock(tmp_path / "a.lock", "taken").close()
    assert not (tmp_path / "a.lock").exists()
