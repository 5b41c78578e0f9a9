"""Validation: each reason, what is accepted with a note, deterministic files, and the limit."""

import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from helpers.pictures import moved, scene
from omnitune.errors import ConfigError, Refused
from omnitune.images.inspect import Depth, inspect_image
from omnitune.images.metadata import EXIF_ORIENTATION
from omnitune.images.prepare import ImageLimits
from omnitune.images.preview import SHIFTED, is_shifted
from omnitune.images.verdicts import METADATA_BYTES, ImageRefused
from omnitune.io import storage
from omnitune.io.jsonl import MAX_LINE_BYTES, count_rows, read_lines
from omnitune.io.url_limits import UrlLimits
from omnitune.models.prompts import apply_chat_template
from omnitune.validation.dataset import RejectedTooMany, ShardCut, estimated_bytes, merge_validation
from omnitune.validation.image_places import image_places
from omnitune.validation.row import check_row, draw_condition, remove_cliche
from omnitune.validation.source import Checks, check_line, validate_mixture, validate_source
from omnitune.validation.summary import MAX_LABELS, OTHER, script_of, summary_tables

pytestmark = pytest.mark.unit


def picture(width: int = 32, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GOOD_ROW = {"task_type": "t2i", "instruction": "a cat", "output_image": "good.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(encoded(picture()))
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def reason_of(row: dict) -> str:
    with pytest.raises(Refused) as error:
        check_row(row)
    return error.value.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_type": "inpaint"}, "unknown_task_type"),
        ({"task_type": None}, "unknown_task_type"),
        ({"task_type": 3}, "wrong_type"),
        ({"instruction": ""}, "empty_instruction"),
        ({"instruction": " \n"}, "empty_instruction"),
        ({"instruction": None}, "empty_instruction"),
        ({"instruction": 42}, "wrong_type"),
        ({"instruction": "\ud800"}, "bad_json"),
        ({"output_image": None}, "no_output_image"),
        ({"output_image": ""}, "no_output_image"),
        ({"output_image": ["a"]}, "wrong_type"),
        ({"input_images": "a.png"}, "wrong_type"),
        ({"input_images": [1]}, "wrong_type"),
        ({"input_images": ["a.png"]}, "unexpected_input_images"),
        ({"task_type": "edit"}, "no_input_images"),
        ({"task_type": "ic", "input_images": []}, "no_input_images"),
        ({"task_type": "in_context", "input_images": ["a"] * 6}, "too_many_input_images"),
    ],
)
def test_rows_are_refused_with_a_reason(change: dict, reason: str) -> None:
    assert reason_of({**GOOD_ROW, **change}) == reason


def test_published_names_and_unknown_keys_are_noted() -> None:
    row = check_row({**GOOD_ROW, "task_type": "text_to_image", "input_images": None, "score": 1})
    assert row.task_type == "t2i"
    assert row.input_images == ()
    assert row.notes == ("unknown key 'score' is ignored", "task_type 'text_to_image' is read as 't2i'")


def broken_images() -> dict[str, tuple[bytes, str]]:
    jpeg, png, webp = (encoded(picture(64, 64), kind) for kind in ("JPEG", "PNG", "WEBP"))
    frames = [picture(seed=k) for k in range(3)]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "text.png": (b"this is text", "not_an_image"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "not_an_image"),
        "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", "not_an_image"),
        "empty.jpg": (b"", "empty_file"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "half.webp": (webp[: len(webp) // 2], "truncated"),
        "flipped.png": (bytes(flipped), "corrupt"),
        "header.png": (png[:12], "corrupt"),
        "film.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated"),
        "film.webp": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "film.png": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "thin.png": (encoded(picture(15, 400)), "too_small"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n", "not_an_image"),
    }


@pytest.mark.parametrize("name", list(broken_images()))
def test_broken_images_are_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    data, reason = broken_images()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageRefused) as error:
        inspect_image(tmp_path / name)
    assert error.value.reason == reason
    assert name in error.value.message


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        data = encoded(picture(40, 40), kind)
        for length in range(1, len(data) - 16, max(1, len(data) // 40)):
            (tmp_path / "cut").write_bytes(data[:length])
            with pytest.raises(ImageRefused):
                inspect_image(tmp_path / "cut")


@pytest.mark.parametrize("depth", ["header", "full"])
def test_places_without_a_file_are_refused(folder: Path, depth: Depth) -> None:
    for path, reason in [
        (folder / "nowhere.png", "missing"),
        (folder / "good.png" / "inside.png", "missing"),
        (folder / ("x" * 300), "missing"),
        (folder / "a\0b", "missing"),
        (folder / "folder.png", "is_a_folder"),
    ]:
        with pytest.raises(ImageRefused) as error:
            inspect_image(path, depth=depth)
        assert error.value.reason == reason


@contextmanager
def ordinary_user() -> Iterator[None]:
    """The tests may run as root, whom nothing is denied."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("depth", ["header", "full"])
def test_files_that_may_not_be_read_are_refused(depth: Depth) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        image = Path(folder) / "good.png"
        image.write_bytes(encoded(picture()))
        Path(folder).chmod(0o755)
        image.chmod(0)
        with ordinary_user(), pytest.raises(ImageRefused, match="permission_denied"):
            inspect_image(image, depth=depth)


@pytest.mark.parametrize("depth", ["header", "full"])
def test_what_never_ends_is_not_read(folder: Path, depth: Depth) -> None:
    os.mkfifo(folder / "pipe.png")
    for place in (folder / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageRefused, match="not_a_file"):
            inspect_image(place, depth=depth)
    with (folder / "long.png").open("wb") as file:
        file.write(encoded(picture()))
        file.truncate(METADATA_BYTES + 8 * 1536 + 1)
    with pytest.raises(ImageRefused, match="too_many_bytes"):
        inspect_image(folder / "long.png", max_pixels=1536, depth=depth)


def test_a_bomb_is_refused_before_it_is_decoded(folder: Path) -> None:
    with pytest.raises(ImageRefused, match=r"too_many_pixels.*32 x 48 = 1536"):
        inspect_image(folder / "good.png", max_pixels=1535)
    limit = Image.MAX_IMAGE_PIXELS
    assert inspect_image(folder / "good.png", max_pixels=1536).width == 32
    assert limit == Image.MAX_IMAGE_PIXELS
    (folder / "huge.png").write_bytes(encoded(Image.new("1", (20_000, 10_000))))
    with pytest.raises(ImageRefused, match="too_many_pixels"):
        inspect_image(folder / "huge.png")


def test_facts_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for name, kind in [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")]:
        (tmp_path / name).write_bytes(encoded(picture(), kind, exif=exif))
        facts = inspect_image(tmp_path / name)
        assert (facts.width, facts.height, facts.format) == (48, 32, kind)
    (tmp_path / "b.png").write_bytes(encoded(picture(), "JPEG"))
    assert inspect_image(tmp_path / "b.png").notes == ("extension '.png' holds JPEG",)


def test_cliches_leave_captions() -> None:
    assert remove_cliche("The image portrays a cat.") == "a cat."
    assert remove_cliche("这张图片展示了一只猫") == "一只猫"
    assert remove_cliche("A cat. The image shows it.") == "A cat. The image shows it."
    assert remove_cliche("The image shows ") == "The image shows "


def test_conditions_are_drawn_with_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_condition("t2i", "The image shows a cat", rng, 0.3, 0.5) for _ in range(4000)]
    assert np.mean([drop for _, drop, _ in drawn]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([references for _, drop, references in drawn if drop]) == pytest.approx(0.5, abs=0.06)
    assert not any(references for _, drop, references in drawn if not drop)
    assert all((text == "") == drop for text, drop, _ in drawn)
    assert np.mean([text == "a cat" for text, drop, _ in drawn if not drop]) == pytest.approx(0.5, abs=0.04)
    assert {draw_condition("edit", "The image shows x", rng, 0, 1)[0] for _ in range(50)} == {"The image shows x"}


def write_lines(path: Path, *rows: dict | bytes, end: bytes = b"\n") -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(end.join(lines) + end)
    return path


def some_rows(count: int) -> list[dict | bytes]:
    bad = {**GOOD_ROW, "output_image": "nowhere.png"}
    edit = {"task_type": "edit", "instruction": "turn", "input_images": ["good.png"], "output_image": "good.png"}
    return [[GOOD_ROW, edit, GOOD_ROW, bad, b"{"][k % 5] for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_row_is_accounted_for_and_workers_change_no_byte(folder: Path) -> None:
    file = write_lines(folder / "a.jsonl", *some_rows(100))
    summary = validate_source("a", [file], folder / "one", workers=1, progress=False)
    assert validate_source("a", [file], folder / "two", workers=2, progress=True) == summary
    assert contents(folder / "one") == contents(folder / "two")
    assert sorted(contents(folder / "one")) == ["rejected.jsonl", "samples.parquet", "summary.json"]
    assert (summary["rows"], summary["accepted"], summary["rejected"]) == (100, 60, 40)
    assert summary["reasons"] == {"bad_json": 20, "missing": 20}
    assert summary["task_types"] == {"t2i": 40, "edit": 20}
    assert (summary["max_input_images"], summary["duplicate_output_images"], summary["images"]) == (1, 59, 80)
    assert summary["output_sizes"]["to 256x256"] == 60
    assert summary["output_aspects"]["2:3 to 4:5"] == 60
    ledger = [json.loads(line) for line in (folder / "one" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in ledger[:4]] == [4, 5, 9, 10]
    assert ledger[0]["row"]["output_image"] == "nowhere.png"
    assert ledger[1]["row"] is None, "no object: it may be a file of another kind"
    row = pq.read_table(folder / "one" / "samples.parquet").to_pylist()[1]
    assert (row["key"], row["line"], row["widths"], row["heights"]) == ("a_00000002", 2, [32, 32], [48, 48])


def test_bom_crlf_and_blank_lines_are_accepted(folder: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps(GOOD_ROW).encode()
    file = write_lines(folder / "a.jsonl", first, b"", b"  ", GOOD_ROW, b'{"task_type": "\xe9"}', end=b"\r\n")
    summary = validate_source("a", [file], folder / "out", progress=False)
    assert (summary["rows"], summary["accepted"], summary["blank_lines"]) == (3, 2, 2)
    assert count_rows(file) == 3, "what a validation calls rows, known without one"
    assert summary["reasons"] == {"not_utf8": 1}
    assert pq.read_table(folder / "out" / "samples.parquet")["ordinal"].to_pylist() == [1, 4]


def test_images_count_from_the_jsonl_then_from_the_working_directory(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    file = write_lines(Path("sub/a.jsonl"), GOOD_ROW)
    validate_source("a", [file], folder / "out", progress=False)
    (folder / "sub" / "good.png").write_bytes(encoded(picture(64, 64)))
    validate_source("a", [file], folder / "later", progress=False)
    for name, path in [("out", "good.png"), ("later", "sub/good.png")]:
        assert pq.read_table(folder / name / "samples.parquet")["output_image"].to_pylist() == [path]


def read_manifests(output: Path) -> dict[str, bytes]:
    """The manifests of shards by name, each of which has its SHA-256 beside it."""
    shards = output / "shards"
    manifests = {path.name: path.read_bytes() for path in sorted(shards.glob("*.jsonl"))}
    digests = {path.name: path.read_text() for path in shards.glob("*.sha256")}
    expected = {f"{Path(name).stem}.sha256": f"{sha256(data).hexdigest()}\n" for name, data in manifests.items()}
    assert digests == expected
    return manifests


def write_mixture(folder: Path, *names: str) -> Path:
    (folder / "mix.yml").write_text(json.dumps({"data": [{"path": str(folder / name)} for name in names]}))
    return folder / "mix.yml"


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


@pytest.mark.slow
def test_workers_may_also_be_spawned(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    file = write_lines(folder / "a.jsonl", *some_rows(40))
    summary = validate_source("a", [file], folder / "out", workers=2, progress=False)
    assert (summary["accepted"], summary["rejected"]) == (24, 16)


def test_progress_is_a_line_where_there_is_no_terminal(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="omnitune")
    file = write_lines(folder / "a.jsonl", *some_rows(10), b"")
    validate_source("a", [file], folder / "out", progress=True)
    assert caplog.messages[-1].startswith("validate a: 11/11 lines (100 %), ")
    caplog.clear()
    validate_source("a", [file], folder / "out", progress=False)
    assert caplog.messages == []


@cache
def header_cases() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    large = picture(400, 300)
    return {
        **{
            f"plain.{kind}": encoded(large, kind)
            for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
        },
        **{f"turned.{kind}": encoded(large, kind, exif=turned) for kind in ("JPEG", "PNG", "WEBP", "TIFF")},
        "lossless.webp": encoded(large, "WEBP", lossless=True),
        "alpha.webp": encoded(picture(400, 300, "RGBA"), "WEBP"),
        "lossless_alpha.webp": encoded(picture(400, 300, "RGBA"), "WEBP", lossless=True),
        "profile.webp": encoded(large, "WEBP", icc_profile=b"profile" * 100),
        "long_profile.jpg": encoded(large, "JPEG", icc_profile=b"profile" * 20_000),
        "grey16.png": encoded(Image.new("I;16", (400, 300))),
        "cmyk.jpg": encoded(picture(400, 300, "CMYK"), "JPEG"),
    }


@pytest.mark.parametrize("name", list(header_cases()))
def test_the_header_tells_what_decoding_tells(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(header_cases()[name])
    full = inspect_image(tmp_path / name)
    assert (full.width, full.height) == ((300, 400) if name.startswith("turned") else (400, 300))
    assert inspect_image(tmp_path / name, depth="header") == replace(full, sha256=None)


def test_the_header_is_read_from_the_first_bytes_alone(tmp_path: Path) -> None:
    noise = picture(400, 300)
    for kind in ("JPEG", "PNG", "BMP", "WEBP"):
        data = encoded(noise, kind, **({"lossless": True} if kind == "WEBP" else {}))
        (tmp_path / "whole").write_bytes(data)
        (tmp_path / "damaged").write_bytes(data[: 64 << 10] + bytes(len(data) - (64 << 10)))
        expected = inspect_image(tmp_path / "whole", depth="header")
        assert inspect_image(tmp_path / "damaged", depth="header") == expected
        if kind in {"JPEG", "PNG"}:  # to the others any content is a picture
            with pytest.raises(ImageRefused, match=r"corrupt|truncated"):
                inspect_image(tmp_path / "damaged")


def test_bombs_and_films_are_refused_by_their_header(tmp_path: Path) -> None:
    for name, (data, reason) in broken_images().items():
        (tmp_path / name).write_bytes(data)
        if reason in {"animated", "too_small", "empty_file", "not_an_image"} or name in {"half.webp", "header.png"}:
            with pytest.raises(ImageRefused) as error:
                inspect_image(tmp_path / name, depth="header")
            assert error.value.reason == reason
    for name, data in header_cases().items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageRefused, match="too_many_pixels"):
            inspect_image(tmp_path / name, max_pixels=400 * 300 - 1, depth="header")


@pytest.mark.parametrize(
    ("name", "data", "note"),
    [
        ("a.png", encoded(Image.new("I;16", (32, 32))), "more than 8 bits per channel, reduced to 8"),
        ("a.jpg", encoded(picture(32, 32, "CMYK"), "JPEG"), "colour mode CMYK, converted to RGB"),
        ("a.png", encoded(picture(32, 32, "RGBA")), "transparency, laid over white"),
        ("a.png", encoded(picture(), "JPEG"), "extension '.png' holds JPEG"),
        ("a", encoded(picture(), "PNG"), "extension '' holds PNG"),
    ],
)
def test_what_will_be_converted_is_noted(tmp_path: Path, name: str, data: bytes, note: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert inspect_image(tmp_path / name).notes == (note,)


def test_16_bit_colour_is_noted(tmp_path: Path) -> None:
    raw = b"".join(b"\0" + bytes(32 * 6) for _ in range(32))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    assert inspect_image(tmp_path / "a.png").notes == ("more than 8 bits per channel, reduced to 8",)


def test_images_stay_below_their_root(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "root").mkdir()
    (folder / "root" / "inside.png").write_bytes(encoded(picture()))
    (folder / "root" / "link.png").symlink_to(folder / "good.png")
    (folder / "root" / "loop.png").symlink_to("loop.png")
    (folder / "rooted.png").write_bytes(encoded(picture()))
    names = ["inside.png", "./a/../inside.png", str(folder / "root" / "inside.png"), "root/inside.png"]
    outside = ["../good.png", "link.png", str(folder / "good.png"), "../rooted.png", "s3://bucket/a.png", "/etc/passwd"]
    missing = ["nowhere.png", "loop.png", "a\0b"]
    (folder / "root" / "a").mkdir()
    file = write_lines(
        folder / "root" / "a.jsonl", *({**GOOD_ROW, "output_image": n} for n in names + outside + missing)
    )
    summary = validate_source("a", [file], folder / "out", Checks(image_root="root"), progress=False)
    assert summary["accepted"] == len(names)
    assert summary["reasons"] == {"outside_image_root": len(outside), "missing": len(missing)}


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("s3://bucket/images/a.png", True),
        ("a.png", True),  # beside the .jsonl
        ("s3://bucket/images/../secret.png", False),
        ("s3://bucket/images/%2e%2e/secret.png", False),
        ("../secret.png", False),
        ("s3://bucket/images2/a.png", False),
        ("https://bucket/images/a.png", False),
        ("/data/a.png", False),
    ],
)
def test_a_root_may_be_a_url(image: str, allowed: bool) -> None:
    samples, root = "s3://bucket/images/a.jsonl", "s3://bucket/images"
    if allowed:
        assert image_places(image, samples, root) == ["s3://bucket/images/a.png"]
    else:
        with pytest.raises(Refused, match="outside_image_root"):
            image_places(image, samples, root)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "nonsense://a/b.png", "s3://", "zip://a.png::file:///x.zip", "memory://a/b", "https:///b"],
)
def test_urls_that_no_service_answers_are_refused(url: str) -> None:
    with pytest.raises(Refused, match="bad_url"):
        image_places(url, "a.jsonl")


def test_long_lines_are_refused_and_counted_as_one(folder: Path) -> None:
    long = json.dumps({**GOOD_ROW, "instruction": "x" * (3 * MAX_LINE_BYTES)}).encode()
    row = json.dumps(GOOD_ROW)[:-1].encode()
    full = row + b" " * (MAX_LINE_BYTES - len(row) - 1) + b"}"
    file = write_lines(folder / "a.jsonl", GOOD_ROW, long, full, full + b" ", GOOD_ROW)
    file.write_bytes(file.read_bytes() + b" " * (2 * MAX_LINE_BYTES))
    summary = validate_source("a", [file], folder / "out", progress=False)
    ledger = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in ledger] == [(k, "line_too_long") for k in (2, 4, 6)]
    assert ledger[0]["row"] is None
    assert pq.read_table(folder / "out" / "samples.parquet")["line"].to_pylist() == [1, 3, 5]
    assert (summary["rows"], summary["accepted"]) == (6, 3)
    assert count_rows(file) == 6


def test_ledgers_stay_small_whatever_a_row_holds(folder: Path) -> None:
    rows = [{**GOOD_ROW, f"key {k} {'x' * 1000}": 1} for k in range(MAX_LABELS + 50)]
    broken = [{**GOOD_ROW, "task_type": "x" * 10_000}, {**GOOD_ROW, "output_image": "x" * 10_000}]
    summary = validate_source("a", [write_lines(folder / "a.jsonl", *rows, *broken)], folder / "out", progress=False)
    assert len(summary["notes"]) == MAX_LABELS + 1
    assert summary["notes"][OTHER] == 50
    assert max(map(len, summary["notes"])) <= 200
    ledger = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    assert all(len(entry["message"]) <= 2000 for entry in ledger)


def test_repeated_output_images_are_noted_across_sources(folder: Path) -> None:
    (folder / "other.png").write_bytes(encoded(picture(seed=1)))
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


def rendered(summary: dict) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(*summary_tables(summary))
    return console.file.getvalue()


def test_summaries_are_printed_by_topic(folder: Path) -> None:
    write_lines(folder / "a.jsonl", *some_rows(10))
    with pytest.raises(RejectedTooMany) as error:
        validate_mixture(write_mixture(folder, "a.jsonl"), folder / "out", progress=False)
    text = rendered(error.value.summary)
    for part in ("4 (40.00%)", "bad_json 2, missing 2", "to 256x256", "not counted", "Latin", "2:3 to 4:5"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a cat", "Latin"),
        ("这张图片 shows", "Latin"),
        ("这张图片展示了一只猫 ok", "Cjk"),
        ("кот", "Cyrillic"),
        ("42!", "none"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with nothing but a tokenizer."""
    from omnitune.demo.text_encoder import build_tokenizer

    folder = tmp_path_factory.mktemp("base")
    build_tokenizer().save_pretrained(folder / "processor")
    return folder


def test_tokens_are_those_of_the_chat(folder: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base / "processor")
    texts = ["make the circle green.", "这张图片展示了一只猫", "a " * 300]
    file = write_lines(folder / "a.jsonl", *({**GOOD_ROW, "instruction": text} for text in texts))
    expected = [len(tokenizer(apply_chat_template(tokenizer, text)).input_ids) for text in texts]
    checks = Checks(maximum_text_tokens=max(expected) - 1, tokenizer=str(base))
    summary = validate_source("a", [file], folder / "out", checks, progress=False)
    assert summary["reasons"] == {"instruction_too_long": 1}
    assert summary["text_tokens"] == sum(sorted(expected)[:2])
    assert sum(summary["text_lengths"].values()) == 2
    tokens = pq.read_table(folder / "out" / "samples.parquet")["text_tokens"].to_pylist()
    assert tokens == sorted(expected)[:2]
    bare = replace(checks, use_chat_template=False)
    validate_source("a", [file], folder / "bare", bare, progress=False)
    found = pq.read_table(folder / "bare" / "samples.parquet")["text_tokens"].to_pylist()
    assert found[0] == len(tokenizer(texts[0]).input_ids) < tokens[0]
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded"):
        validate_source("a", [file], folder / "bad", Checks(tokenizer=str(folder)), progress=False)


@pytest.mark.slow
def test_counting_tokens_does_not_load_torch(folder: Path, base: Path) -> None:
    file = write_lines(folder / "a.jsonl", GOOD_ROW)
    program = f"""
import sys
from pathlib import Path
from omnitune.validation.source import Checks, validate_source
checks = Checks(tokenizer={str(base)!r})
print(validate_source("a", [Path({str(file)!r})], Path({str(folder / "out")!r}), checks, progress=False)["text_tokens"])
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tokens, torch = done.stdout.split()
    assert int(tokens) > 0
    assert torch == "False"


def test_more_inputs_than_limits_are_noted(folder: Path) -> None:
    row = {**GOOD_ROW, "task_type": "ic", "input_images": ["good.png"] * 3}
    file = write_lines(folder / "a.jsonl", row, {**row, "input_images": ["good.png"] * 2})
    summary = validate_source("a", [file], folder / "out", Checks(input_limits=2), progress=False)
    assert summary["notes"] == {"more input images than the 2 entries of max_input_pixels: the last holds": 1}


def test_a_byte_order_mark_is_noted(folder: Path) -> None:
    file = write_lines(folder / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD_ROW).encode(), GOOD_ROW)
    summary = validate_source("a", [file], folder / "out", progress=False)
    assert summary["notes"] == {"the file starts with a byte order mark, which is left out": 1}


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
    (folder / "strip.png").write_bytes(encoded(picture(5000, 20)))
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


def put(url: str, data: bytes) -> str:
    with storage.atomic_file(url) as temporary:
        temporary.write_bytes(data)
    return url


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "workers"), [("full", 1), ("full", 2), ("header", 2)])
def test_sources_and_images_may_be_at_urls(folder: Path, s3: str, depth: Depth, workers: int, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    place = f"{s3}/validate-{depth}-{workers}"
    noise = encoded(picture(400, 300), "JPEG", quality=95)
    put(f"{place}/images/noise.jpg", noise)
    put(f"{place}/empty.png", b"")
    put(f"{place}/text.png", b"this is text")
    names = ["images/noise.jpg", f"{place}/images/noise.jpg", "good.png", str(folder / "good.png")]
    names += ["nowhere.png", "empty.png", "text.png", f"{place}/images"]
    rows = [json.dumps({**GOOD_ROW, "output_image": name}).encode() + b"\n" for name in names]
    samples = put(f"{place}/a.jsonl", b"".join(rows))
    (folder / "mix.yml").write_text(json.dumps({"data": [{"path": samples}]}))
    options = {"progress": False, "max_reject_fraction": 0.5}
    summary = validate_mixture("mix.yml", folder / "out", Checks(depth), workers=workers, **options)
    assert summary["reasons"] == {"missing": 2, "empty_file": 1, "not_an_image": 1}
    rows = pq.read_table(folder / "out" / "samples.parquet").to_pylist()
    assert [row["output_image"] for row in rows] == [names[1], names[1], "good.png", names[3]]
    assert [row["bytes"] for row in rows[:2]] == [[len(noise)]] * 2
    assert {row["file"] for row in rows} == {samples}
    assert summary["sources"]["a"]["files"] == [samples]


def test_the_header_at_a_url_is_read_by_ranges(s3: str) -> None:
    data = encoded(picture(400, 300), "PNG")
    url = put(f"{s3}/validate-range/a.png", data[: 64 << 10] + bytes(len(data) - (64 << 10)))
    assert inspect_image(url, depth="header").bytes == len(data)
    with pytest.raises(ImageRefused, match=r"corrupt|truncated"):
        inspect_image(url)


def test_sources_at_urls_that_are_not_there_are_named(folder: Path, s3: str) -> None:
    with pytest.raises(ConfigError, match=r"source 'a': s3://.*/nowhere\.jsonl: cannot be read"):
        validate_source("a", [f"{s3}/nowhere.jsonl"], folder / "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_cannot_be_used_is_one_error(folder: Path, s3: str, workers: int) -> None:
    file = write_lines(folder / "a.jsonl", *[{**GOOD_ROW, "output_image": "s3://bucket/a.png"}] * 50)
    program = (
        "from pathlib import Path\n"
        "from omnitune.console import job\n"
        "from omnitune.validation.source import validate_source\n"
        f"with job(): validate_source('a', [Path({str(file)!r})], Path('out'), workers={workers}, progress=False)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "s3://bucket/a.png" in done.stderr
    assert "redential" in done.stderr
    assert "Traceback" not in done.stderr


BAD_URLS = [
    "https://user:hunter2@host/a.jpg",
    "https://hunter2@host/a.jpg",
    "https://host/a.jpg?X-Amz-Signature=hunter2",
    "http://host:port/a.jpg",
    "http://host:99999/a.jpg",
    "s3://a:b/a.jpg",
    "simplecache://a/a.jpg",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("depth", ["full", "header"])
def test_urls_that_cannot_be_read_are_verdicts_on_their_rows(tmp_path: Path, depth: Depth) -> None:
    """They end no run, and what credentials they hold is written nowhere."""
    rows = [{"task_type": "t2i", "instruction": "a", "output_image": url} for url in BAD_URLS]
    rows += [{"task_type": "no", "instruction": "a", "output_image": url} for url in BAD_URLS]
    private = ["http://127.0.0.1:1/a.jpg", "http://127.0.0.2:1/a.jpg"]  # the first one is allowed, and nobody answers
    rows += [{"task_type": "t2i", "instruction": "a", "output_image": url} for url in private]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = Checks(depth=depth, urls=UrlLimits(private_networks=("127.0.0.1",)))
    summary = validate_source("a", [tmp_path / "a.jsonl"], tmp_path / "out", checks, progress=False)
    number = len(BAD_URLS)
    reasons = {"bad_url": number, "unknown_task_type": number, "unreachable": 1, "private_address": 1}
    assert summary["reasons"] == reasons
    assert "hunter2" not in (tmp_path / "out/rejected.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_deep_nesting_is_refused(tmp_path: Path, workers: int) -> None:
    """Though it can be parsed: neither another process nor the ledger could take it."""
    lines = [b'{"task_type": "x", "a": ' + b"[" * depth + b"]" * depth + b"}\n" for depth in (10, 40, 500, 990, 5000)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    summary = validate_source("a", [tmp_path / "a.jsonl"], tmp_path / "out", progress=False, workers=workers)
    assert summary["reasons"] == {"bad_json": 4, "unknown_task_type": 1}


@pytest.mark.parametrize(
    ("right", "zoom", "kinds", "noted"),
    [
        (0, 1, ("JPEG", "PNG"), False),
        (2, 1, ("PNG", "PNG"), False),
        (6, 1, ("JPEG", "WEBP"), True),
        (6, 1, ("PNG", "PNG"), True),
        (0, 1.03, ("PNG", "JPEG"), True),
    ],
)
def test_a_pair_whose_content_is_shifted_is_noted(
    tmp_path: Path, right: float, zoom: float, kinds: tuple[str, str], noted: bool
) -> None:
    """By more than a 256th of the longer side or a percent; also where a new object stands in the output."""
    before = scene((1000, 700))
    after = moved(before, right, 0, zoom)
    after.paste(scene((300, 200), seed=2), (400, 300))
    names = [f"{name}.{kind.lower()}" for name, kind in zip(("in", "out"), kinds, strict=True)]
    for name, image, kind in zip(names, (before, after), kinds, strict=True):
        image.save(tmp_path / name, kind)
    pair = {"task_type": "edit", "instruction": "x", "input_images": [names[0]], "output_image": names[1]}
    path = tmp_path / "s.jsonl"
    for row, shown in (
        (pair, noted),
        ({**pair, "task_type": "ic"}, False),
        ({**pair, "input_images": [names[0]] * 2}, False),
    ):
        path.write_text(json.dumps(row) + "\n")
        [line] = read_lines([(str(path), path)])
        verdict = check_line("s", line)
        assert verdict.sample is not None
        assert (SHIFTED in verdict.sample.notes) == shown


def test_shifted_pairs_are_looked_at_upright(tmp_path: Path) -> None:
    """A photograph that is stored on its side and one that is not show the same."""
    before = scene((400, 300))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    before.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in.jpg", exif=exif, quality=95)
    before.save(tmp_path / "out.png")
    facts = [inspect_image(tmp_path / name, preview=True) for name in ("in.jpg", "out.png")]
    previews = [found.preview for found in facts]
    assert previews[0] and previews[1] and previews[0].size == previews[1].size == (128, 96)
    assert not is_shifted(previews[0], previews[1])
