"""The data stages in real Snakemake runs: appended rows, tars at a URL, encoded data."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.workplace import Workplace
from omnitune.io import storage

pytestmark = pytest.mark.workflow

SHARDS = "prepared/tiny/shards"


def state(folder: Path, pattern: str) -> dict[str, int]:
    """Names of files and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}


def start_over(workplace: Workplace) -> None:
    """Allows a training whose data has changed, which is refused otherwise; a short one, of one process."""
    workplace.edit("config/options/tiny.yml", lambda c: c.update(resume_from_checkpoint=None))
    workplace.edit("config/options/tiny.yml", lambda c: c["train"].update(batch_size=8, max_train_steps=2))


def test_appended_rows_rewrite_the_last_shard_alone(workplace: Workplace) -> None:
    """Also where manifests are too large for Snakemake to compare their content."""
    source = workplace.root / "resources/demo/edit.jsonl"
    lines = source.read_text().splitlines(keepends=True)
    before = state(workplace.root / SHARDS, "*.tar")
    with source.open("a") as file:
        file.writelines(lines[:100])
    output = workplace.snakemake("shard", "--max-checksum-file-size", "100")
    after = state(workplace.root / SHARDS, "*.tar")
    *kept, last = before
    assert kept and all(after[name] == before[name] for name in kept)
    assert after[last] != before[last]
    assert len(after) == len(before) + 1
    assert output.count("rule shard_dataset:") == 2
    assert pq.read_table(workplace.root / SHARDS / "index.parquet").num_rows > len(lines)


def test_tars_at_a_url(workplace: Workplace, s3: str) -> None:
    """Written there, read from there in training by range requests; nothing of the credentials is left behind."""
    local = state(workplace.root / SHARDS, "*.tar")
    for path in (workplace.root / SHARDS).glob("*.tar"):
        path.unlink()
    workplace.edit("config/config.yaml", lambda c: c.update(shards_url=s3))
    workplace.edit("config/options/tiny.yml", lambda c: c["data"].update(encode=False, url_cache_mb=1))
    workplace.edit("config/options/tiny.yml", lambda c: c.update(cache_dir="cache"))
    start_over(workplace)
    workplace.snakemake("train")
    index = pq.read_table(workplace.root / SHARDS / "index.parquet").to_pylist()
    assert {row["tar"] for row in index} == {f"{s3}/tiny/{name}" for name in local}
    assert not list((workplace.root / SHARDS).glob("*.tar"))
    for row in index[:3]:
        assert json.loads(storage.read_range(row["tar"], row["json_offset"], row["json_size"]))["key"] == row["key"]
    train = json.loads((workplace.root / "experiments/tiny/train.json").read_text())
    assert train["final_step"] == 2
    assert any(path.is_file() for path in (workplace.root / "cache/shards").rglob("*"))
    assert "Nothing to be done" in workplace.snakemake("train")
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    written = [p for p in workplace.root.rglob("*") if p.is_file() and "cache" not in p.parts]
    assert not [path for path in written if secret in path.read_bytes()]


def test_bucket_that_is_not_there(workplace: Workplace, s3: str) -> None:
    workplace.edit("config/config.yaml", lambda c: c.update(shards_url="s3://no-such-bucket"))
    output = workplace.snakemake("shard", ok=False)
    assert "s3://no-such-bucket/tiny/" in output
    assert "Traceback" not in output


def test_encoded_data_is_made_once(workplace: Workplace) -> None:
    folder = workplace.root / "prepared/tiny/encoded/demo"
    assert (folder / "dropped.safetensors").is_file()
    tars = state(folder, "*.tar")
    assert tars.keys() == state(workplace.root / SHARDS, "*.tar").keys()
    workplace.edit("config/options/tiny.yml", lambda c: c["train"].update(learning_rate=0.002))
    start_over(workplace)
    assert "encode_dataset" not in workplace.planned()
    workplace.edit("config/options/tiny.yml", lambda c: c["data"].update(encoded_precision="bf16"))
    assert workplace.planned()["encode_dataset"] == 1
    workplace.snakemake("encode")
    assert all(written != tars[name] for name, written in state(folder, "*.tar").items())


def test_appended_rows_are_encoded_and_trained_on_in_one_run(workplace: Workplace) -> None:
    """Though no tar is new, and of the encoded tars only the changed one is made anew."""
    folder = workplace.root / "prepared/tiny/encoded/demo"
    before = state(folder, "*.tar")
    source = workplace.root / "resources/demo/edit.jsonl"
    with source.open("r+") as file:
        lines = file.readlines()
        file.writelines(lines[:10])
    rows = pq.read_table(workplace.root / SHARDS / "index.parquet").num_rows
    start_over(workplace)
    planned = workplace.snakemake("train")
    assert planned.count("rule encode_dataset:") == planned.count("checkpoint train_experiment:") == 1
    assert pq.read_table(workplace.root / SHARDS / "index.parquet").num_rows == rows + 10
    after = state(folder, "*.tar")
    *kept, last = before
    assert kept and all(after[name] == before[name] for name in kept)
    assert after[last] != before[last]


def test_a_changed_token_limit_reaches_encoding_and_training_in_one_run(workplace: Workplace) -> None:
    """Validation, a checkpoint, runs again before; though all rows stay as they are, and with them the shards."""
    workplace.edit("config/options/tiny.yml", lambda c: c["data"].update(maximum_text_tokens=65))
    start_over(workplace)
    output = workplace.snakemake("train")
    for job in ("rule validate_source", "rule encode_dataset", "checkpoint train_experiment"):
        assert output.count(f"{job}:") == 1, job
    assert "rule shard_dataset:" not in output
    assert "Nothing to be done" in workplace.snakemake("train")


def test_a_second_project_shards_and_encodes_nothing(workplace: Workplace, tmp_path: Path) -> None:
    """It lies elsewhere, and has the same data and limits."""
    store = tmp_path / "store"
    store.mkdir()
    workplace.edit("config/config.yaml", lambda c: c.update(store=str(store)))
    shutil.rmtree(workplace.root / "prepared/tiny/encoded")
    workplace.snakemake("encode", "--forcerun", "shard_dataset")
    second = workplace.copy_to(tmp_path / "second")
    shutil.rmtree(second.root / "prepared")
    shutil.rmtree(second.root / "logs")
    second.snakemake("encode")
    names = sorted(path.name for path in (workplace.root / SHARDS).glob("*.tar"))
    for folder in (SHARDS, "prepared/tiny/encoded/demo"):
        assert sorted(path.name for path in (second.root / folder).glob("*.tar")) == names
        assert all((second.root / folder / name).samefile(workplace.root / folder / name) for name in names)
    logs = "".join(path.read_text() for path in (second.root / "logs/encode_dataset").rglob("*.log"))
    assert f"{len(names)} of {len(names)} shards are encoded already" in logs and "samples, on" not in logs
    assert "Nothing to be done" in second.snakemake("encode")
