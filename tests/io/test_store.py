"""What projects share: entries that are whole are taken, others are not, and faults of the store stop nothing."""

import logging
import shutil
from pathlib import Path

import pytest

from omnitune.errors import ConfigError
from omnitune.io.files import atomic_folder
from omnitune.io.store import Store, store_key

pytestmark = pytest.mark.unit


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def files_of(folder: Path) -> list[Path]:
    return [folder / "a.tar", folder / "a.parquet"]


def written(folder: Path, content: str = "content") -> list[Path]:
    folder.mkdir()
    for path in files_of(folder):
        path.write_text(content + path.suffix)
    return files_of(folder)


def test_what_one_project_puts_another_takes(store: Store, tmp_path: Path) -> None:
    key, first, second = store_key({"name": "a"}), written(tmp_path / "first"), files_of(tmp_path / "second")
    assert not store.take(key, second) and not (tmp_path / "second").exists()
    store.put(key, first)
    assert store.take(key, second) and store.take(key, second)
    assert [path.read_text() for path in second] == ["content.tar", "content.parquet"]
    assert second[0].samefile(first[0]) and not second[1].samefile(first[1])
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["a.parquet", "a.tar"]
    shutil.rmtree(store.folder)
    assert second[0].read_text() == "content.tar"


def test_keys_differ_with_every_fact() -> None:
    facts = {"name": "a", "limits": {"pixels": 1}}
    assert store_key(facts) == store_key(dict(reversed(facts.items())))
    assert len({store_key(f) for f in (facts, facts | {"name": "b"}, facts | {"limits": {"pixels": 2}})}) == 3


@pytest.mark.parametrize("fault", ["changed", "lost", "no json", "no object"])
def test_a_damaged_entry_is_not_taken_and_is_replaced(
    store: Store, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("0a", written(tmp_path / "first"))
    entry = store.folder / "0a" / "0a"
    (entry / "a.tar").unlink()
    if fault == "changed":
        (entry / "a.tar").write_text("other")
    elif fault != "lost":
        (entry / "entry.json").write_text("{" if fault == "no json" else "[]")
    with caplog.at_level(logging.WARNING, "omnitune"):
        assert not store.take("0a", files_of(tmp_path / "second"))
    assert "made again" in caplog.text and not (tmp_path / "second").exists()
    store.put("0a", files_of(tmp_path / "first"))
    assert store.take("0a", files_of(tmp_path / "second"))


def test_faults_of_the_store_are_said_and_stop_nothing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = written(tmp_path / "first")
    with atomic_folder(store.folder / "0a" / "0a"), caplog.at_level(logging.INFO, "omnitune"):
        store.put("0a", files)
    assert "another process puts the same there" in caplog.text
    shutil.rmtree(store.folder)
    store.folder.write_text("no folder")
    store.put("0a", files)
    assert "nothing was put there" in caplog.text


def test_a_store_must_be_there(tmp_path: Path) -> None:
    assert Store.of(None) is None and Store.of("") is None
    with pytest.raises(ConfigError, match=r"store: .*/nowhere does not exist\. mkdir -p"):
        Store(tmp_path / "nowhere").require()
