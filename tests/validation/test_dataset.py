"""A data set: sources merged, shards cut, and the limit on rejected rows."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.pictures import encoded
from helpers.samples import (
    GOOD_ROW,
    contents,
    noisy_picture,
    read_manifests,
    rendered,
    some_rows,
    write_lines,
    write_mixture,
)
from omnitune.errors import ConfigError
from omnitune.images.prepare import ImageLimits
from omnitune.validation.dataset import RejectedTooMany, ShardCut, estimated_bytes, merge_validation, validate_mixture
from omnitune.validation.source import Checks, validate_source

pytestmark = pytest.mark.unit


@pytest.mark.slow
def test_a_mixture_is_merged_and_cut_into_manifests(folder: Path) -> None:
    write_lines(folder / "a.jsonl", *some_rows(23))
    write_lines(folder / "b.jsonl", GOOD_ROW)
    options = {"progress": False, "max_reject_fraction": 0.5, "samples_per_shard": 10}
    summary = validate_mixture(write_mixture(folder, "a.jsonl", "b.jsonl"), folder / "out", **options)
    assert (summary["rows"], summary["rejected"]) == (24, 8)
    assert list(summary["sources"]) == ["a", "b"]
    manifests = read_manifests(folder / "out")
    assert list(manifests) == ["a-00000.jsonl", "a-00001.jsonl", "a-00002.jsonl", "b-00000.jsonl"]
    rows = [json.loads(line) for line in (folder / "out/shards/a-00001.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"a_{k:08d}" for k in (11, 12, 13, 16, 17, 18)]
    assert set(rows[0]) == {
        "key", "source", "task_type", "instruction", "text_tokens", "input_images", "output_image", "bytes", "sha256",
    }  # fmt: skip
    assert len(pq.read_table(folder / "out" / "samples.parquet")) == 16
    assert len((folder / "out" / "rejected.jsonl").read_text().splitlines()) == 8
    before = contents(folder / "out")
    validate_mixture(folder / "mix.yml", folder / "out", workers=2, **options)
    assert contents(folder / "out") == before


def test_appended_rows_leave_earlier_manifests_alone(folder: Path) -> None:
    options = {"progress": False, "max_reject_fraction": 0.5, "samples_per_shard": 10}
    mixture = write_mixture(folder, "a.jsonl")
    write_lines(folder / "a.jsonl", *some_rows(20))
    validate_mixture(mixture, folder / "out", **options)
    before = read_manifests(folder / "out")
    write_lines(folder / "a.jsonl", *some_rows(35))
    validate_mixture(mixture, folder / "out", **options)
    after = read_manifests(folder / "out")
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


def test_too_many_rejected_rows_fail_and_leave_the_ledger(folder: Path) -> None:
    write_lines(folder / "a.jsonl", *some_rows(10))
    mixture = write_mixture(folder, "a.jsonl")
    with pytest.raises(RejectedTooMany) as error:
        validate_mixture(mixture, folder / "out", progress=False, max_reject_fraction=0.39)
    message = str(error.value)
    for part in (
        "4 of 10 rows",
        "bad_json 2",
        "missing 2",
        "data.max_reject_fraction: 0.39",
        "out.failed/rejected.jsonl",
    ):
        assert part in message
    assert len((folder / "out.failed" / "rejected.jsonl").read_text().splitlines()) == 4
    assert not (folder / "out" / "samples.parquet").exists()
    validate_mixture(mixture, folder / "out", progress=False, max_reject_fraction=0.4)
    assert not (folder / "out.failed").exists()


def test_a_source_without_an_accepted_sample_is_an_error(folder: Path) -> None:
    write_lines(folder / "a.jsonl", GOOD_ROW)
    (folder / "b.jsonl").touch()
    write_lines(folder / "c.jsonl", b"{")
    with pytest.raises(RejectedTooMany, match=r"no accepted sample in source 'b', 'c' .*bad_json 1"):
        validate_mixture(
            write_mixture(folder, "a.jsonl", "b.jsonl", "c.jsonl"),
            folder / "out",
            progress=False,
            max_reject_fraction=1,
        )


def test_missing_files_are_named_with_the_places_tried(folder: Path) -> None:
    (folder / "mix.yml").write_text("data:\n  - path: nowhere.jsonl\n")
    with pytest.raises(ConfigError, match=r"mix\.yml: source 'nowhere'.*tried nowhere\.jsonl and .*nowhere\.jsonl"):
        validate_mixture(folder / "mix.yml", folder / "out", progress=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        validate_source("a", [folder / "nowhere.jsonl"], folder / "out", progress=False)
    with pytest.raises(ConfigError, match="validate first"):
        merge_validation([folder / "sources" / "a"], folder / "out", max_reject_fraction=0, cut=ShardCut(1))


def test_repeated_output_images_are_noted_across_sources(folder: Path) -> None:
    (folder / "other.png").write_bytes(encoded(noisy_picture(seed=1)))
    other = {**GOOD_ROW, "output_image": "other.png"}
    write_lines(folder / "a.jsonl", GOOD_ROW, other)
    write_lines(folder / "b.jsonl", other, GOOD_ROW, GOOD_ROW)
    mixture = write_mixture(folder, "a.jsonl", "b.jsonl")
    summary = validate_mixture(mixture, folder / "out", progress=False)
    assert summary["duplicate_output_images"] == 3
    assert summary["notes"] == {"output image has the same bytes as an earlier row's": 3}
    assert [source["duplicate_output_images"] for source in summary["sources"].values()] == [0, 1]
    notes = pq.read_table(folder / "out" / "samples.parquet")["notes"].to_pylist()
    assert [len(row) for row in notes] == [0, 0, 1, 1, 1]
    summary = validate_mixture(mixture, folder / "header", Checks("header"), progress=False)
    assert (summary["depth"], summary["accepted"], summary["duplicate_output_images"]) == ("header", 5, None)
    assert pq.read_table(folder / "header" / "samples.parquet")["sha256"].to_pylist() == [[None]] * 5
    assert "not known" in rendered(summary)


LIMITS = {"max_output_pixels": 1024, "max_input_pixels": 1024, "max_side_length": 2048}


def test_shards_cut_by_bytes_stay_where_they_are(folder: Path) -> None:
    mixture = write_mixture(folder, "a.jsonl")
    options = {"progress": False, "max_reject_fraction": 0.5, "shard_bytes": 25_000, "limits": LIMITS}
    rows = some_rows(60)
    for count in (40, 60):
        write_lines(folder / "a.jsonl", *rows[:count])
        summary = validate_mixture(mixture, folder / f"out{count}", **options)
    assert (summary["samples_per_shard"], summary["shard_bytes"]) == (None, 25_000)
    before, after = read_manifests(folder / "out40"), read_manifests(folder / "out60")
    assert len(after) > len(before) > 2
    last = sorted(before)[-1]
    assert all(after[name] == before[name] for name in before if name != last)
    assert after[last].startswith(before[last])
    samples = pq.read_table(folder / "out60" / "samples.parquet").to_pylist()
    sizes = [estimated_bytes(row, ImageLimits(**LIMITS)) for row in samples]
    first = len(after["a-00000.jsonl"].splitlines())
    assert sum(sizes[: first - 1]) < 25_000 <= sum(sizes[:first])


def test_strips_that_the_limits_leave_nothing_of_go_to_the_ledger(folder: Path) -> None:
    (folder / "strip.png").write_bytes(encoded(noisy_picture(5000, 20)))
    strip = {**GOOD_ROW, "output_image": "strip.png"}
    write_lines(folder / "a.jsonl", GOOD_ROW, strip, b"{", GOOD_ROW, strip)
    write_lines(folder / "b.jsonl", GOOD_ROW)
    mixture = write_mixture(folder, "a.jsonl", "b.jsonl")
    options = {"progress": False, "max_reject_fraction": 0.5, "samples_per_shard": 10}
    summary = validate_mixture(mixture, folder / "out", limits=LIMITS, **options)
    assert (summary["rows"], summary["accepted"], summary["reasons"]) == (6, 3, {"too_thin": 2, "bad_json": 1})
    assert (summary["sources"]["a"]["accepted"], summary["sources"]["b"]["accepted"]) == (2, 1)
    ledger = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in ledger] == [(3, "bad_json"), (2, "too_thin"), (5, "too_thin")]
    assert "strip.png: an image of 5000 x 20 pixels becomes" in ledger[1]["message"]
    assert ledger[1]["row"]["output_image"].endswith("strip.png")
    rows = [json.loads(line) for line in read_manifests(folder / "out")["a-00000.jsonl"].splitlines()]
    assert [row["key"] for row in rows] == ["a_00000001", "a_00000004"]
    assert len(pq.read_table(folder / "out" / "samples.parquet")) == 3
    with pytest.raises(RejectedTooMany, match=r"3 of 6 rows .*too_thin 2, bad_json 1"):
        validate_mixture(mixture, folder / "two", limits=LIMITS, **{**options, "max_reject_fraction": 0.2})
    assert "too_thin" in (folder / "two.failed" / "rejected.jsonl").read_text()


def test_estimates_follow_the_limits() -> None:
    row = {
        "input_images": ["a"],
        "instruction": "x",
        "widths": [64, 640],
        "heights": [64, 640],
        "bytes": [9000, 500_000],
    }
    wide = ImageLimits(640 * 640, [4096], 2048)
    small = ImageLimits(64 * 64, [4096], 2048)
    assert estimated_bytes(row, wide) == 3 * 1024 + 1 + 9000 + 500_000
    assert estimated_bytes(row, small) == pytest.approx(3 * 1024 + 1 + 9000 + 0.6 * 4096)
    assert estimated_bytes(row, replace(small, image_format="png")) == pytest.approx(3 * 1024 + 1 + 9000 + 2 * 4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of the two"),
        ({"samples_per_shard": 1, "shard_bytes": 1, "limits": LIMITS}, "give one of the two"),
        ({"samples_per_shard": 0}, "samples_per_shard: 0 is not allowed"),
        ({"shard_bytes": 1}, "needs limits"),
    ],
)
def test_impossible_cuts_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardCut(**arguments)


def test_a_folder_of_manifests_with_something_else_in_it_is_left_alone(folder: Path) -> None:
    write_lines(folder / "a.jsonl", GOOD_ROW)
    (folder / "out/shards").mkdir(parents=True)
    (folder / "out/shards/mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"out/shards: holds 'mine\.txt', which no validation wrote"):
        validate_mixture(write_mixture(folder, "a.jsonl"), folder / "out", progress=False)
    assert (folder / "out/shards/mine.txt").read_text() == "precious"
