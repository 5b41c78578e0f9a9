"""Random access to tars: exact bytes, errors that name the place, and a disk cache that keeps to its limit."""

import multiprocessing
import pickle
import random
from pathlib import Path

import fsspec
import pytest

from omnitune.sharding import tars
from omnitune.sharding.tars import SUBFOLDERS, DiskCache, TarReader

pytestmark = pytest.mark.unit

CONTENT = random.Random(0).randbytes(100_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def remote(s3: str) -> str:
    with fsspec.open(f"{s3}/tars/a.tar", "wb") as file:
        file.write(CONTENT)
    return f"{s3}/tars"


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_pieces_are_exact_with_more_tars_than_may_be_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "OPEN_TARS", 1)
    reader = pickle.loads(pickle.dumps(TarReader(folder)))
    for tar in ("a.tar", "b.tar", str(folder / "a.tar")):
        assert reader.read(tar, 500, 1000, "k") == CONTENT[500:1500]
        assert len(reader._files) == 1
    reader.close()
    assert reader.read("b.tar", 0, len(CONTENT), "k") == CONTENT


def test_a_tar_cut_off_while_open_is_named_and_one_replaced_by_renaming_is_not_noticed(folder: Path) -> None:
    reader = TarReader(folder)
    reader.read("a.tar", 0, 10, "k")
    with (folder / "a.tar").open("rb+") as file:
        file.truncate(1200)
    with pytest.raises(ValueError, match=r"a\.tar: ends early: sample k at byte 1000 needs 500 bytes, there are 200"):
        reader.read("a.tar", 1000, 500, "k")
    reader.read("b.tar", 0, 10, "k")
    (folder / "new").write_bytes(b"other")
    (folder / "new").replace(folder / "b.tar")
    assert reader.read("b.tar", 1000, 500, "k") == CONTENT[1000:1500]


def test_missing_tars_and_other_sizes_are_named(folder: Path) -> None:
    reader = TarReader(folder, fix="Write it again")
    reader.check({"a.tar": len(CONTENT), "b.tar": len(CONTENT)})
    with pytest.raises(ValueError, match=r"b\.tar: has 100000 bytes, but 5 when it was indexed. Write it again\."):
        reader.check({"a.tar": len(CONTENT), "b.tar": 5})
    with pytest.raises(ValueError, match=r"c\.tar: is missing"):
        reader.check({"a.tar": len(CONTENT), "c.tar": 5})
    with pytest.raises(ValueError, match=r"c\.tar: sample k at byte 3 cannot be read \(No such file.*Write it again\."):
        reader.read("c.tar", 3, 5, "k")


def test_urls_are_read_by_range_and_named_where_they_fail(remote: str) -> None:
    reader = TarReader(remote)
    reader.check({"a.tar": len(CONTENT)})
    assert reader.read("a.tar", 500, 1000, "k") == CONTENT[500:1500]
    assert TarReader("elsewhere").read(f"{remote}/a.tar", 0, 7, "k") == CONTENT[:7]
    with pytest.raises(ValueError, match=r"a\.tar: ends early: sample k at byte 99990 needs 50 bytes, there are 10"):
        reader.read("a.tar", 99_990, 50, "k")
    with pytest.raises(ValueError, match=r"a\.tar: ends early: sample k at byte 200000 "):
        reader.read("a.tar", 200_000, 50, "k")
    with pytest.raises(ValueError, match=r"s3://.*/c\.tar: sample k at byte 0 cannot be read .*forcerun shard_dataset"):
        reader.read("c.tar", 0, 50, "k")
    with pytest.raises(ValueError, match=r"s3://.*/c\.tar: is missing"):
        reader.check({"c.tar": 5})


def test_what_a_url_gave_is_kept_on_disk_for_that_version_only(remote: str, tmp_path: Path) -> None:
    arguments = (remote, tmp_path / "cache", 1_000_000)
    assert TarReader(*arguments).read("a.tar", 500, 1000, "k", "v1") == CONTENT[500:1500]
    with fsspec.open(f"{remote}/a.tar", "wb") as file:
        file.write(CONTENT[::-1])
    reader = TarReader(*arguments)
    assert reader.read("a.tar", 500, 1000, "k", "v1") == CONTENT[500:1500]
    assert reader.read("a.tar", 500, 1000, "k", "v2") == CONTENT[::-1][500:1500]
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (entry,) = [path for path in files if path.read_bytes()[32:] == CONTENT[500:1500]]
    entry.write_bytes(entry.read_bytes()[:-1] + b"?")  # as a failing disk would
    assert reader.read("a.tar", 500, 1000, "k", "v1") == CONTENT[::-1][500:1500]


def test_without_a_limit_nothing_is_kept(remote: str, tmp_path: Path) -> None:
    TarReader(remote, tmp_path / "cache", 0).read("a.tar", 0, 10, "k")
    assert not (tmp_path / "cache").exists()


def write_and_read(folder: Path, limit: int, seed: int, largest: "multiprocessing.Value") -> None:
    cache, rng = DiskCache(folder, limit), random.Random(seed)
    for _ in range(300):
        number = rng.randrange(400)
        kept = cache.get(str(number))
        assert kept in (None, random.Random(number).randbytes(500))
        cache.put(str(number), random.Random(number).randbytes(500))
        with largest.get_lock():
            largest.value = max(largest.value, stored_now(folder))


def stored_now(folder: Path) -> int:
    """As `stored`, while other processes add and remove files."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@pytest.mark.slow
def test_the_limit_holds_with_several_processes_writing(tmp_path: Path) -> None:
    limit = SUBFOLDERS * 2000
    largest = multiprocessing.Value("q", 0)
    processes = [
        multiprocessing.Process(target=write_and_read, args=(tmp_path, limit, seed, largest)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert limit / 2 < stored(tmp_path) <= limit
    assert largest.value <= limit


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, SUBFOLDERS * 5000)
    same = [str(k) for k in range(3000) if cache._path(str(k)).parent == cache._path("0").parent]
    for key in same[:4]:
        cache.put(key, key.encode() * (1000 // len(key)))
    assert cache.get(same[0])
    (tmp_path / cache._path("0").parent / "left.tmp").write_bytes(b"by a process that was killed")
    cache.put(same[4], bytes(1500))
    assert [bool(cache.get(key)) for key in same[:5]] == [True, False, True, True, True]
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_entry_above_its_share_is_not_kept_and_a_smaller_limit_shrinks_the_cache(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, SUBFOLDERS * 1000)
    cache.put("large", bytes(1000))
    assert cache.get("large") is None
    for k in range(300):
        cache.put(str(k), bytes(300))
    smaller = DiskCache(tmp_path, SUBFOLDERS * 400)
    for k in range(300, 600):
        smaller.put(str(k), bytes(300))
    assert stored(tmp_path) <= SUBFOLDERS * 400


def test_a_cache_that_cannot_be_written_is_reported_once(
    remote: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    reader = TarReader(remote, tmp_path / "file" / "cache", 1_000_000)
    for offset in (0, 10):
        assert reader.read("a.tar", offset, 10, "k") == CONTENT[offset : offset + 10]
    warnings = [record.message for record in caplog.records if record.name == "omnitune.sharding.tars"]
    assert len(warnings) == 1
    assert "the cache cannot be written" in warnings[0]
