"""Shards and the index: what lies where, at a path or a URL, and that bytes depend on manifest and limits alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from helpers.pictures import encoded, opened, picture
from omnitune.errors import ConfigError
from omnitune.images.prepare import PreparedImage
from omnitune.io import storage
from omnitune.io.store import Store
from omnitune.sharding import sample_images
from omnitune.sharding.digests import read_limits, read_sources, write_shard_digests
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.shard import ImageLimits, shard_dataset, write_shard
from omnitune.sharding.write_index import write_index
from omnitune.validation.dataset import validate_mixture
from omnitune.validation.source import Checks

pytestmark = pytest.mark.unit

LIMITS = ImageLimits(64 * 64, [48 * 48, 32 * 32], 80)


def test_limits_of_inputs_depend_on_their_number() -> None:
    limits = ImageLimits(100, [40, 30, 20], 10)
    assert [limits.input_limit(k) for k in (1, 2, 3, 4, 5)] == [40, 30, 20, 20, 20]
    assert ImageLimits(100, 50, 10).input_limit(5) == 50
    assert limits.note(3) is None
    assert "3 entries and samples have up to 5 input images; the last entry, 20" in (limits.note(5) or "")


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    write_samples(tmp_path, 12)
    return validate(tmp_path)


def write_samples(folder: Path, count: int) -> None:
    rows = []
    for k in range(count):
        (folder / f"{k}.png").write_bytes(encoded(picture(64, 64, seed=k)))
        (folder / f"{k}.jpg").write_bytes(encoded(picture(100, 60, seed=k), "JPEG"))
        (folder / f"{k}.webp").write_bytes(encoded(picture(300, 80, "RGBA", seed=k), "WEBP"))
        inputs = [[], [f"{k}.jpg"], [f"{k}.jpg", f"{k}.png"], [f"{k}.webp"]][k % 4]
        task = "ic" if inputs else "t2i"
        row = {
            "task_type": task,
            "instruction": f"Bild {k} ☺\u2028\x85",
            "input_images": inputs,
            "output_image": f"{k}.png",
        }
        rows.append(json.dumps(row))
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "mix.yml").write_text(f"data:\n  - path: {folder / 'a.jsonl'}\n")


def validate(folder: Path) -> Path:
    validate_mixture(folder / "mix.yml", folder / "validation", progress=False, samples_per_shard=5)
    return folder / "validation"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_whatever_the_workers(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "one", LIMITS, workers=1, progress=False)
    for name, workers in [("two", "2"), ("three", "1")]:
        command = [sys.executable, "-m", "omnitune.cli", "shard", "--validated", str(validated), "--workers", workers]
        command += ["--output", str(tmp_path / name), "--max-output-pixels", "4096", "--max-side-length", "80"]
        subprocess.run([*command, "--max-input-pixels", "2304,1024"], check=True, capture_output=True)
        assert hashes(tmp_path / name) == hashes(tmp_path / "one")
    shards = [f"a-0000{k}.{kind}" for k in range(3) for kind in ("parquet", "tar")]
    assert list(hashes(tmp_path / "one")) == [*shards, "index.arrow", "index.parquet"]
    assert str(tmp_path).encode() not in (tmp_path / "one" / "index.arrow").read_bytes()


def test_appended_rows_leave_earlier_shards_alone(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    before = hashes(tmp_path / "out")
    write_samples(tmp_path, 14)
    shard_dataset(validate(tmp_path), tmp_path / "out", LIMITS, progress=False)
    after = hashes(tmp_path / "out")
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["a-00002.parquet", "a-00002.tar", "index.arrow", "index.parquet"]


def test_the_index_says_what_each_source_comes_to_however_it_is_cut(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "one", LIMITS, progress=False)
    validate_mixture(tmp_path / "mix.yml", tmp_path / "again", progress=False, samples_per_shard=7)
    shard_dataset(tmp_path / "again", tmp_path / "two", LIMITS, progress=False)
    one, two = (read_sources(tmp_path / name / "index.parquet") for name in ("one", "two"))
    assert one == two
    assert one["a"]["samples"] == 12
    metadata = [pq.read_schema(tmp_path / name / "index.parquet").metadata[b"shards"] for name in ("one", "two")]
    assert metadata[0] != metadata[1]
    with pa.memory_map(str(tmp_path / "one" / "index.arrow")) as mapped, pa.ipc.open_file(mapped) as reader:
        assert reader.schema.metadata == pq.read_schema(tmp_path / "one" / "index.parquet").metadata
    shard_dataset(validated, tmp_path / "three", ImageLimits(32 * 32, 32 * 32, 80), progress=False)
    assert read_sources(tmp_path / "three" / "index.parquet")["a"]["sha256"] != one["a"]["sha256"]


def test_the_index_says_under_which_limits_its_shards_were_made(validated: Path, tmp_path: Path) -> None:
    parts = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    limits = read_limits(tmp_path / "out" / "index.parquet")
    assert limits == json.loads(json.dumps(vars(LIMITS)))
    write_shard(validated / "shards/a-00001.jsonl", parts[1].with_suffix(".tar"), parts[1], ImageLimits(1024, 1024, 80))
    write_index(parts, tmp_path / "out" / "index.parquet")
    assert read_limits(tmp_path / "out" / "index.parquet") is None


def test_an_index_that_says_nothing_of_its_sources_is_named(validated: Path, tmp_path: Path) -> None:
    [part, *_] = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    for path in (part, tmp_path / "a.jsonl", tmp_path / "nothing.parquet"):  # no such metadata, no parquet, no file
        with pytest.raises(ConfigError, match=rf"{path.name}: cannot be read as an index .*--forcerun index_dataset"):
            read_sources(path)


def test_each_tar_has_a_digest_that_is_small_enough_to_compare(validated: Path, tmp_path: Path) -> None:
    parts = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    write_shard_digests(parts, tmp_path / "digests")
    tars = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").glob("*.tar")}
    assert {path.name: path.read_text() for path in (tmp_path / "digests").iterdir()} == {
        f"{name}.sha256": f"{sha256}\n" for name, sha256 in tars.items()
    }


def test_webdataset_alone_reads_the_shards(validated: Path, tmp_path: Path) -> None:
    parts = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    tars = [str(part.with_suffix(".tar")) for part in parts]
    reader = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil")
    samples = list(reader)
    assert [sample["__key__"] for sample in samples] == [f"a_{k:08d}" for k in range(1, 13)]
    assert set(samples[2]) >= {"json", "input_0.jpg", "input_1.jpg", "output.png"}
    assert samples[2]["json"]["instruction"] == "Bild 2 ☺\u2028\x85"
    assert samples[2]["json"]["images"] == [
        {"width": 32, "height": 16, "kept": False},
        {"width": 32, "height": 32, "kept": False},
        {"width": 64, "height": 64, "kept": True},
    ]
    assert samples[2]["input_0.jpg"].size == (32, 16)
    assert samples[1]["input_0.jpg"].size == (48, 32)  # alone, an input may have more pixels


def test_tars_hold_nothing_of_the_run(validated: Path, tmp_path: Path) -> None:
    index = tmp_path / "a-00000.parquet"
    assert write_shard(validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.tar", index, LIMITS) == 5
    with tarfile.open(tmp_path / "a-00000.tar") as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members][:3] == ["a_00000001.json", "a_00000001.output.png", "a_00000002.json"]


def test_the_index_finds_every_member(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["key"] for row in rows] == [f"a_{k:08d}" for k in range(1, 13)]
    for row in rows:
        data = (tmp_path / "out" / row["tar"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["tar_bytes"], row["tar_sha256"])
        description = data[row["json_offset"] :][: row["json_size"]]
        assert json.loads(description)["key"] == row["key"]
        places = zip(row["image_offsets"], row["image_sizes"], strict=True)
        images = [data[offset:][:size] for offset, size in places]
        assert [opened(image).size for image in images] == list(zip(row["widths"], row["heights"], strict=True))
        assert hashlib.sha256(description + b"".join(images)).hexdigest() == row["sha256"]
    assert (rows[2]["output_tokens"], rows[2]["input_tokens"]) == (16, 2 * 1 + 2 * 2)


@pytest.mark.parametrize("large_file", [sample_images.LARGE_FILE, 0])
def test_images_changed_since_validation_are_errors(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_file: int
) -> None:
    monkeypatch.setattr(sample_images, "LARGE_FILE", large_file)
    manifest, tar = validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.tar"
    index = tar.with_suffix(".parquet")
    original = (tmp_path / "0.png").read_bytes()
    for content, message in [(original + b"x", "has .* bytes, but"), (original[:-1] + b"x", "sha256")]:
        (tmp_path / "0.png").write_bytes(content)
        with pytest.raises(ValueError, match=rf"0\.png.*{message}.* Validate again"):
            write_shard(manifest, tar, index, LIMITS)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"0\.png.* (does not exist|No such file.*), but .* Validate again"):
        write_shard(manifest, tar, index, LIMITS)
    assert not [*tmp_path.glob("*.tar*"), *tmp_path.glob("*.parquet"), *tmp_path.glob(".*partial")]


def test_the_index_is_ordered_whatever_the_order_of_its_parts(validated: Path, tmp_path: Path) -> None:
    parts = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    assert write_index(parts[::-1], tmp_path / "index.parquet") == 12
    for name in ("index.parquet", "index.arrow"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_mapped_index_has_the_same_rows_in_batches(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    monkeypatch.setattr("omnitune.sharding.write_index.ROWS_PER_BATCH", 7)
    write_index(parts, tmp_path / "index.parquet")
    with pa.memory_map(str(tmp_path / "index.arrow")) as mapped, pa.ipc.open_file(mapped) as reader:
        assert [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)] == [7, 5]
        table = reader.read_all()
        assert table.equals(pq.read_table(tmp_path / "index.parquet"))
        assert table["key"].to_pylist() == [f"a_{k:08d}" for k in range(1, 13)]


@pytest.mark.parametrize("column", ["instruction", "sha256"])
def test_a_mapped_index_of_other_rows_and_the_same_metadata_is_refused(
    validated: Path, tmp_path: Path, column: str
) -> None:
    """It would train on other captions, or other samples, under the same identity."""
    shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    index = ShardIndex.load(tmp_path / "out/index.parquet")
    index.check_rows()
    source = index.sources[0]
    index.read_images(index.row(source, 0))
    with pa.ipc.open_file(tmp_path / "out/index.arrow") as reader:
        table = reader.read_all()
    values = ["ab" * 32] * table.num_rows
    changed = table.set_column(table.schema.get_field_index(column), table.schema.field(column), [values])
    with pa.ipc.new_file(tmp_path / "out/index.arrow", table.schema) as writer:
        writer.write_table(changed.cast(table.schema))
    index = ShardIndex.load(tmp_path / "out/index.parquet")
    with pytest.raises(
        ValueError, match="is not that of the sample" if column == "instruction" else "are not those that"
    ):
        index.check_rows()
        index.read_images(index.row(source, 0))


def test_large_images_are_read_in_pieces_to_the_same_end(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_dataset(validated, tmp_path / "one", LIMITS, progress=False)
    monkeypatch.setattr(sample_images, "LARGE_FILE", 0)
    shard_dataset(validated, tmp_path / "two", LIMITS, progress=False)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_text_tokens_of_the_validation_reach_tar_and_index(validated: Path, tmp_path: Path) -> None:
    manifest, index = validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.parquet"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[1]["text_tokens"] = 17
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_shard(manifest, tmp_path / "a-00000.tar", index, LIMITS)
    found = pq.read_table(index).to_pylist()[1]
    assert found["text_tokens"] == 17
    with (tmp_path / "a-00000.tar").open("rb") as tar:
        tar.seek(found["json_offset"])
        assert json.loads(tar.read(found["json_size"]))["text_tokens"] == 17


def test_without_a_hash_the_size_alone_tells_a_changed_image(validated: Path, tmp_path: Path) -> None:
    manifest, tar = validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.tar"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["sha256"] = [None] * len(row["sha256"])
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_shard(manifest, tar, tar.with_suffix(".parquet"), LIMITS) == 5
    original = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(original[:-1])
    with pytest.raises(ValueError, match=r"a_00000002 .*1\.jpg has .* bytes, but .* Validate again"):
        write_shard(manifest, tar, tar.with_suffix(".parquet"), LIMITS)
    (tmp_path / "1.jpg").write_bytes(original[:200] + bytes(len(original) - 200))
    with pytest.raises(ValueError, match=r"a_00000002 .*1\.jpg ends before the image does .*validation_depth: full"):
        write_shard(manifest, tar, tar.with_suffix(".parquet"), LIMITS)


def test_at_depth_header_sharding_decodes_what_it_keeps_and_names_all_damaged_rows(tmp_path: Path) -> None:
    write_samples(tmp_path, 5)
    good = encoded(noise(64), "JPEG", quality=90)
    cut, hole = good[: len(good) // 2], good[: len(good) // 2] + bytes(len(good) // 2 - 2) + good[-2:]
    wide = encoded(noise(128), "WEBP", quality=90)
    for name, data in (
        ("0.png", good),
        ("1.png", cut),
        ("2.png", hole),
        ("3.png", wide[: len(wide) // 2] + bytes(len(wide) // 2)),
    ):
        (tmp_path / name).write_bytes(data)
    checks = Checks("header")
    validate_mixture(tmp_path / "mix.yml", tmp_path / "validation", checks, progress=False, samples_per_shard=5)
    with pytest.raises(ValueError, match=r"1\.png ends before the image does") as error:
        shard_dataset(tmp_path / "validation", tmp_path / "out", LIMITS, progress=False)
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"a_0000000{k} (row {k} of source 'a')" for k in (2, 3, 4)]
    assert "2.png has" in lines[1] and "3.png has" in lines[2] and "validation_depth: full" in lines[2]
    assert not (tmp_path / "out" / "a-00000.tar").exists()


def test_a_row_whose_decoder_dies_is_named(validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(file: bytes, *arguments: object) -> PreparedImage:
        if file == (tmp_path / "2.png").read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        return PreparedImage(file, "png", 64, 64, True)  # libvips may not run here: other tests have started it

    monkeypatch.setattr(sample_images, "prepare_image", dies)
    monkeypatch.delitem(sys.modules, "pyvips", raising=False)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # forked, whatever other tests have left
    tar = tmp_path / "a-00000.tar"
    with pytest.raises(
        ValueError, match=r"^a_00000003 \(row 3 of source 'a'\): writing one of .*2\.png ends the process"
    ):
        write_shard(validated / "shards" / "a-00000.jsonl", tar, tar.with_suffix(".parquet"), LIMITS, workers=2)


def test_limits_that_leave_nothing_name_the_image(validated: Path, tmp_path: Path) -> None:
    tar = tmp_path / "a-00000.tar"
    with pytest.raises(ValueError, match=r"a_00000004 .*3\.webp: .*needs at least 16.*raise the limits in `data`"):
        write_shard(
            validated / "shards" / "a-00000.jsonl", tar, tar.with_suffix(".parquet"), ImageLimits(4096, 600, 80)
        )


@pytest.mark.slow
def test_images_and_tars_at_urls(s3: str, tmp_path: Path) -> None:
    write_samples(tmp_path, 12)
    for path in tmp_path.glob("[0-9]*"):
        with storage.atomic_file(f"{s3}/images/{path.name}") as temporary:
            temporary.write_bytes(path.read_bytes())
        path.unlink()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row in rows:
        row["input_images"] = [f"{s3}/images/{name}" for name in row["input_images"]]
        row["output_image"] = f"{s3}/images/{row['output_image']}"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    shard_dataset(validate(tmp_path), tmp_path / "out", LIMITS, progress=False, tars=f"{s3}/tars")
    assert not list((tmp_path / "out").glob("*.tar"))
    for row in pq.read_table(tmp_path / "out" / "index.parquet").to_pylist():
        assert row["tar"] == f"{s3}/tars/a-{row['shard']:05d}.tar"
        assert storage.size_of(row["tar"]) == row["tar_bytes"]
        members = [(row["json_offset"], row["json_size"]), *zip(row["image_offsets"], row["image_sizes"], strict=True)]
        contents = [storage.read_range(row["tar"], offset, size) for offset, size in members]
        assert hashlib.sha256(b"".join(contents)).hexdigest() == row["sha256"]
        assert json.loads(contents[0])["key"] == row["key"]


@pytest.mark.slow
def test_tars_at_urls_have_the_bytes_of_local_ones(s3: str, validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "here", LIMITS, progress=False)
    command = [sys.executable, "-m", "omnitune.cli", "shard", "--validated", str(validated), "--workers", "2"]
    command += ["--output", str(tmp_path / "there"), "--max-output-pixels", "4096", "--max-side-length", "80"]
    command += ["--max-input-pixels", "2304,1024", "--tars", f"{s3}/same"]
    subprocess.run(command, check=True, capture_output=True)
    for k in range(3):
        there = storage.read_bytes(f"{s3}/same/a-0000{k}.tar")
        assert there == (tmp_path / "here" / f"a-0000{k}.tar").read_bytes()
    indexes = [read_sources(tmp_path / name / "index.parquet") for name in ("here", "there")]
    assert indexes[0] == indexes[1]


@pytest.mark.slow
def test_places_that_cannot_be_written_are_one_message(s3: str, validated: Path, tmp_path: Path) -> None:
    for tars, message in [
        ("s3://no-such-bucket/tars", "Error: s3://no-such-bucket/tars/a-00000.tar: not found (The specified bucket"),
        ("nonsense://tars", "Error: nonsense://tars/a-00000.tar: cannot be opened: Protocol not known: nonsense"),
        (str(tmp_path / "tars"), "is no URL; local tars lie in the output folder"),
    ]:
        command = [sys.executable, "-m", "omnitune.cli", "shard", "--validated", str(validated), "--workers", "1"]
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "out"), "--tars", tars], check=False, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("out/*"))


def test_indexes_that_are_none_are_errors(validated: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shards are named"):
        write_index([tmp_path / "shard.parquet"], tmp_path / "index.parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "a-00000.parquet")
    with pytest.raises(ValueError, match=r"a-00000\.parquet: is of another version"):
        write_index([tmp_path / "a-00000.parquet"], tmp_path / "index.parquet")
    assert not list(tmp_path.glob("index.*"))
    with pytest.raises(ConfigError, match="validate first"):
        shard_dataset(tmp_path / "nothing", tmp_path / "out", LIMITS)


def test_what_is_shared_depends_on_samples_and_limits_and_not_on_where_images_lie(tmp_path: Path) -> None:
    """At depth header, which hashes no image, nothing is shared."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store")
    for number, place in enumerate(("first", "second/below")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        write_samples(folder, 12)
        shard_dataset(validate(folder), folder / "shards", LIMITS, progress=False, store=store)
        assert len(list(store.folder.glob("*/*/entry.json"))) == 3
        if number:
            assert hashes(folder / "shards") == hashes(tmp_path / "first/shards")
            assert (folder / "shards/a-00000.tar").samefile(tmp_path / "first/shards/a-00000.tar")
    others = ImageLimits(64 * 64, [48 * 48, 32 * 32], 64)
    shard_dataset(tmp_path / "first/validation", tmp_path / "smaller", others, progress=False, store=store)
    assert len(list(store.folder.glob("*/*/entry.json"))) == 6
    mixture, headers = tmp_path / "first/mix.yml", tmp_path / "headers"
    validate_mixture(mixture, headers, Checks("header"), progress=False, samples_per_shard=5)
    shard_dataset(headers, tmp_path / "unhashed", LIMITS, progress=False, store=store)
    assert len(list(store.folder.glob("*/*/entry.json"))) == 6
