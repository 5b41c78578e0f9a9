"""Lines of .jsonl files: what is refused, and that whatever reads samples takes the same files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from omnitune.config import Benchmark
from omnitune.errors import Refused
from omnitune.evaluation.prompts import read_prompts
from omnitune.images.prepare import ImageLimits
from omnitune.io.jsonl import BOM, MAX_LINE_BYTES, Line, decode_line, read_objects
from omnitune.training.heldout import read_heldout
from omnitune.validation.source import validate_source

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "bad_json"),
        (b"[1]", "not_an_object"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b"[" * 200_000, "bad_json"),
        (b'{"a": NaN}', "bad_json"),
        (b'{"a": 1e999}', "bad_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"instruction": "a", "instruction": "b"}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate_key"),
        (b"{}\r{}", "bad_json"),
    ],
)
def test_lines_are_refused_with_a_reason(line: bytes, reason: str) -> None:
    with pytest.raises(Refused) as error:
        decode_line(Line("a.jsonl", 1, 1, line))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("line", "hint"), [(b"[", "jq -c"), (b'[{"a": 1}]', "jq -c"), (b'{"a": 1},', "a comma stands behind"), (b"{", "")]
)
def test_what_is_json_but_no_lines_is_told(line: bytes, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        decode_line(Line("a.jsonl", 1, 1, line))
    assert hint in caught.value.message
    assert ("jq" in caught.value.message) == ("jq" in hint)


def test_objects_come_with_the_number_of_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(BOM + b'{"a": 1}\r\n\n  \n{"a": "\xe2\x80\xa8"}')
    assert list(read_objects(file)) == [(1, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{", "not valid JSON at column 2"),
        (b'"text"', "a line must be a JSON object, found a string"),
        (b'{"a": "\xff"}', "byte 8 of the line is not UTF-8"),
        (b" " * MAX_LINE_BYTES + b"{}", f"more than {MAX_LINE_BYTES} bytes"),
        (BOM + b"{}", "not valid JSON|Unexpected UTF-8 BOM"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path: Path, bad: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n' + bad + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*({message})"):
        list(read_objects(tmp_path / "a.jsonl"))


def samples_accepted(file: Path) -> int:
    return validate_source("a", [file], file.parent / "out", progress=False)["accepted"]


def prompts_accepted(file: Path) -> int:
    return len(read_prompts(Benchmark(prompts=str(file)), file.parent))


def heldout_accepted(file: Path) -> int:
    return len(read_heldout(file, 10, ImageLimits(64 * 64, 64 * 64, 64)))


@pytest.mark.parametrize("accepted", [samples_accepted, prompts_accepted, heldout_accepted])
def test_a_file_with_a_byte_order_mark_is_accepted_by_all_that_read_samples(
    tmp_path: Path, accepted: Callable[[Path], int]
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    row = {"task_type": "t2i", "instruction": "a cat", "output_image": "a.png"}
    lines = [json.dumps({"key": f"k{number}", **row}).encode() for number in range(2)]
    file = tmp_path / "a.jsonl"
    file.write_bytes(BOM + lines[0] + b"\r\n\r\n" + lines[1])
    assert accepted(file) == 2
