"""Validation: each reason, what is accepted with a note, deterministic files, and the limit."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omnitune.config import ConfigError
from omnitune.data import decode
from omnitune.data.decode import ImageRefused, inspect_image
from omnitune.data.merge import RejectedTooMany, merge_validation
from omnitune.data.sample import Refused, check_row, decode_line, draw_condition, remove_cliche
from omnitune.data.validate import validate_mixture, validate_source

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


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"{", "bad_json"), (b"[1]", "not_an_object"), (b'{"a": "\xff"}', "not_utf8"), (b"[" * 200_000, "bad_json")],
)
def test_lines_are_refused_with_a_reason(line: bytes, reason: str) -> None:
    with pytest.raises(Refused) as error:
        decode_line(line)
    assert error.value.reason == reason


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


def test_places_without_a_file_are_refused(folder: Path, monkeypatch) -> None:
    for path, reason in [
        (folder / "nowhere.png", "missing"),
        (folder / "good.png" / "inside.png", "missing"),
        (folder / ("x" * 300), "missing"),
        (folder / "a\0b", "missing"),
        (folder / "folder.png", "is_a_folder"),
    ]:
        with pytest.raises(ImageRefused) as error:
            inspect_image(path)
        assert error.value.reason == reason

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # the tests may run as root, whom nothing is denied
    with pytest.raises(ImageRefused, match="permission_denied"):
        inspect_image(folder / "good.png")


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
    exif[decode.EXIF_ORIENTATION] = 6
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
    assert ledger[1]["row"] == "{"
    row = pq.read_table(folder / "one" / "samples.parquet").to_pylist()[1]
    assert (row["key"], row["line"], row["widths"], row["heights"]) == ("a_00000002", 2, [32, 32], [48, 48])


def test_bom_crlf_and_blank_lines_are_accepted(folder: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps(GOOD_ROW).encode()
    file = write_lines(folder / "a.jsonl", first, b"", b"  ", GOOD_ROW, b'{"task_type": "\xe9"}', end=b"\r\n")
    summary = validate_source("a", [file], folder / "out", progress=False)
    assert (summary["rows"], summary["accepted"], summary["blank_lines"]) == (3, 2, 2)
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


def write_mixture(folder: Path, *names: str) -> Path:
    (folder / "mix.yml").write_text(json.dumps({"data": [{"path": str(folder / name)} for name in names]}))
    return folder / "mix.yml"


def test_a_mixture_is_merged_and_cut_into_manifests(folder: Path) -> None:
    write_lines(folder / "a.jsonl", *some_rows(23))
    write_lines(folder / "b.jsonl", GOOD_ROW)
    options = {"progress": False, "max_reject_fraction": 0.5, "samples_per_shard": 10}
    summary = validate_mixture(write_mixture(folder, "a.jsonl", "b.jsonl"), folder / "out", **options)
    assert (summary["rows"], summary["rejected"]) == (24, 8)
    assert list(summary["sources"]) == ["a", "b"]
    manifests = sorted(path.name for path in (folder / "out" / "shards").iterdir())
    assert manifests == ["a-00000.jsonl", "a-00001.jsonl", "a-00002.jsonl", "b-00000.jsonl"]
    rows = [json.loads(line) for line in (folder / "out/shards/a-00001.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"a_{k:08d}" for k in (11, 12, 13, 16, 17, 18)]
    assert set(rows[0]) == {
        "key", "source", "task_type", "instruction", "input_images", "output_image", "bytes", "sha256",
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
    before = contents(folder / "out" / "shards")
    write_lines(folder / "a.jsonl", *some_rows(35))
    validate_mixture(mixture, folder / "out", **options)
    after = contents(folder / "out" / "shards")
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
        merge_validation([folder / "sources" / "a"], folder / "out", max_reject_fraction=0, samples_per_shard=1)


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
