"""What was changed after it was written is noticed, also where size and times are as before."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.projects import sha256, write
from omnitune.errors import ConfigError
from omnitune.pretrained.weights import check_weights, weights_hash
from omnitune.sharding.digests import index_metadata, update_digest
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import INDEX_SCHEMA
from omnitune.sharding.write_index import write_index

pytestmark = pytest.mark.unit


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model of one part, with its manifest."""
    folder = tmp_path / "base"
    write(folder / "transformer/model.safetensors", "weights")
    write(folder / "manifest.json", json.dumps({"transformer/model.safetensors": sha256("weights")}))
    return folder


def test_zeroed_weights_of_equal_size_and_time_are_refused(base: Path) -> None:
    path = base / "transformer/model.safetensors"
    assert check_weights([base / "transformer"]) == 1
    known, times = weights_hash(base / "transformer"), path.stat()
    write(path, "\0" * 7)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_hash(base / "transformer") == known, "the manifest still says so"
    with pytest.raises(ValueError, match=r"model\.safetensors: is not what was written .* Prepare again: snakemake .*"):
        check_weights([base / "transformer"])


def test_weights_that_no_manifest_names_are_refused(base: Path) -> None:
    write(base / "transformer/model.safetensors.index.json", "{}")
    with pytest.raises(ValueError, match=r"index\.json: is not named by .*manifest\.json"):
        check_weights([base / "transformer"])


def test_processes_share_the_files(base: Path) -> None:
    write(base / "transformer/model.safetensors", "changed")
    check_weights([base / "transformer"], rank=1, world_size=2)
    with pytest.raises(ValueError, match="is not what was written"):
        check_weights([base / "transformer"], rank=0, world_size=2)


def test_the_hash_over_samples_is_the_same_however_rows_are_cut(tmp_path: Path) -> None:
    rows = pa.table({"key": ["a", "b", "c"], "sha256": ["1", "2", "3"], "tar": ["t"] * 3, "tar_sha256": ["h"] * 3})
    pq.write_table(rows, tmp_path / "x-00000.parquet")
    written = json.loads(index_metadata([tmp_path / "x-00000.parquet"])["sources"])["x"]
    assert written == {"samples": 3, "sha256": sha256("a 1\nb 2\nc 3\n")}
    digest = hashlib.sha256()
    for batch in rows.to_batches(max_chunksize=2):
        update_digest(digest, batch)
    assert digest.hexdigest() == written["sha256"]


def test_whatever_an_index_says_of_its_columns_is_a_sentence(tmp_path: Path) -> None:
    """Each byte of what describes a column, one after the other: types that the library does not have, too."""
    part, index = tmp_path / "a-00000.parquet", tmp_path / "index.parquet"
    row = {
        "source": "a",
        "shard": 0,
        "key": "a_1",
        "task_type": "t2i",
        "instruction": "x",
        "tar": "a-00000.tar",
        "tar_sha256": "h",
        "sha256": "1",
    }
    pq.write_table(pa.Table.from_pylist([row], INDEX_SCHEMA), part)
    write_index([part], index)
    mapped = index.with_suffix(".arrow")
    whole = mapped.read_bytes()
    for place in range(len(whole) - 130, len(whole)):
        mapped.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
        with suppress(ConfigError):
            ShardIndex(index)
