"""Tars and their indexes, damaged or made up: what is read is whole, or a sentence says what is wrong."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import FUZZ, damaged
from helpers.pictures import picture
from omnitune.io.files import json_line, sha256_of
from omnitune.sharding.digests import index_metadata
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import INDEX_SCHEMA, IndexRow
from omnitune.sharding.shard import ImageLimits, write_shard
from omnitune.sharding.tars import TarReader
from omnitune.sharding.write_index import write_index

pytestmark = pytest.mark.unit

NAMES = ["index.parquet", "index.arrow", "a-00000.tar"]
PLACES = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5000)
NUMBERS = PLACES | st.none()
VALUES = {
    "tar": st.sampled_from(["a-00000.tar", "../a", "/dev/zero", "\0", "", "file:///etc/hostname", None]) | st.text(),
    "image_offsets": st.lists(NUMBERS, max_size=3) | st.none(),
    "image_sizes": st.lists(NUMBERS, max_size=3) | st.none(),
    **dict.fromkeys(["json_offset", "json_size", "tar_bytes"], NUMBERS),
    **dict.fromkeys(["key", "instruction", "sha256", "source", "task_type"], st.text(max_size=8) | st.none()),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of three samples with its index."""
    folder = tmp_path_factory.mktemp("shards")
    rows = []
    for number in range(1, 4):
        path = folder / f"{number}.png"
        picture(32, 32).save(path)
        row: dict[str, Any] = {
            "key": f"a_{number:08d}",
            "source": "a",
            "task_type": "t2i",
            "instruction": f"a cat {number}",
        }
        row |= {"input_images": [], "output_image": str(path), "text_tokens": 3}
        rows.append(row | {"bytes": [path.stat().st_size], "sha256": [sha256_of(path)]})
    (folder / "a-00000.jsonl").write_text("".join(map(json_line, rows)))
    part = folder / "a-00000.parquet"
    write_shard(folder / "a-00000.jsonl", folder / "a-00000.tar", part, ImageLimits(4096, 4096, 64))
    write_index([part], folder / "index.parquet")
    return folder


def read_all(index: Path) -> int:
    """Reads every sample of an index as training does; ValueError where it is not whole."""
    opened = ShardIndex(index)
    opened.check_rows()
    opened.check_tars()
    read = 0
    for source in opened.sources:
        for number in range(*opened.sizes([source])):
            opened.images(opened.row(source, number))
            opened.tokens(source, number)
            read += 1
    opened.close()
    return read


@pytest.mark.slow
@FUZZ
@given(name=st.sampled_from(NAMES), data=st.data(), mapped=st.booleans())
def test_damaged_tars_and_indexes(
    shards: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject, mapped: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for other in NAMES:
        shutil.copy(shards / other, folder / other)
    if not mapped:
        (folder / "index.arrow").unlink()
    (folder / name).write_bytes(data.draw(damaged((shards / name).read_bytes())))
    try:
        assert read_all(folder / "index.parquet") == 3
    except ValueError as error:
        assert str(folder) in str(error)
    shutil.rmtree(folder)


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_made_up_indexes(shards: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whole files of the right columns, in which any value stands."""
    rows = pq.read_table(shards / "index.parquet").to_pylist()
    for row in rows:
        for name in data.draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=3)):
            row[name] = data.draw(VALUES[name])
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(shards / "a-00000.tar", folder / "a-00000.tar")
    schema = INDEX_SCHEMA.with_metadata(index_metadata([shards / "a-00000.parquet"]))
    schema = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "index.parquet")
    try:
        assert read_all(folder / "index.parquet") == 3
    except ValueError as error:
        assert len(str(error)) > 10
    shutil.rmtree(folder)


def test_columns_of_the_index_are_known() -> None:
    assert VALUES.keys() <= {field.name for field in fields(IndexRow)}


@FUZZ
@given(tar=VALUES["tar"].filter(lambda name: isinstance(name, str)), offset=PLACES, size=PLACES)
def test_pieces_of_tars(shards: Path, tar: str, offset: int, size: int) -> None:
    try:
        assert len(TarReader(shards).read(tar, offset, size, "a")) == size
    except ValueError as error:
        assert "sample a at byte" in str(error) or "file://" in str(error)
