"""A source: every row accounted for, deterministic files, ledgers, tokens."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.pictures import encoded, moved, scene
from helpers.samples import GOOD_ROW, contents, noisy_picture, some_rows, write_lines
from omnitune.errors import ConfigError
from omnitune.images.inspect import inspect_image
from omnitune.images.metadata import EXIF_ORIENTATION
from omnitune.images.preview import SHIFTED, is_shifted
from omnitune.io.jsonl import MAX_LINE_BYTES, count_rows, read_lines
from omnitune.models.text.prompts import apply_chat_template
from omnitune.validation.source import Checks, check_line, validate_source
from omnitune.validation.summary import MAX_LABELS, OTHER

pytestmark = pytest.mark.unit


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
    (folder / "sub" / "good.png").write_bytes(encoded(noisy_picture(64, 64)))
    validate_source("a", [file], folder / "later", progress=False)
    for name, path in [("out", "good.png"), ("later", "sub/good.png")]:
        assert pq.read_table(folder / name / "samples.parquet")["output_image"].to_pylist() == [path]


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
    with pytest.raises(ConfigError, match="holds no tokenizer"):
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
