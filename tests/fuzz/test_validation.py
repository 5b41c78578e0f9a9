"""Validation on damaged files: no crash, no hang, each line counted once, nothing accepted that does not decode."""

import io
import json
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.fuzzing import EXAMPLES, FUZZ, damaged
from omnitune.images.inspect import inspect_image
from omnitune.images.prepare import load_rgb
from omnitune.images.verdicts import ImageRefused
from omnitune.validation.source import Checks, validate_source

pytestmark = pytest.mark.unit

SETTINGS = settings(FUZZ, max_examples=EXAMPLES or 400)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    smooth = noise.resize((70, 90), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "a camera"
    thumbnail = encoded(noise, "JPEG")
    with_thumbnail = turned.tobytes() + thumbnail  # whose end of image does not end the outer one
    return {
        "baseline.jpg": encoded(smooth, "JPEG"),
        "progressive.jpg": encoded(smooth, "JPEG", progressive=True, quality=90),
        "restarts.jpg": encoded(smooth, "JPEG", restart_marker_rows=1),
        "thumbnail.jpg": encoded(smooth, "JPEG", exif=with_thumbnail),
        "cmyk.jpg": encoded(smooth.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(smooth.convert("L"), "JPEG"),
        "frames.mpo": encoded(smooth, "MPO", save_all=True, append_images=[noise]),
        "rgb.png": encoded(noise, "PNG", exif=turned),
        "palette.png": encoded(noise.convert("P"), "PNG", transparency=3),
        "grey16.png": encoded(Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)), "PNG"),
        "film.png": encoded(noise, "PNG", save_all=True, append_images=[noise.rotate(90)]),
        "lossy.webp": encoded(noise, "WEBP", exif=turned),
        "lossless.webp": encoded(noise.convert("RGBA"), "WEBP", lossless=True),
        "plain.gif": encoded(noise, "GIF"),
        "plain.bmp": encoded(noise, "BMP"),
        "lzw.tif": encoded(noise, "TIFF", compression="tiff_lzw", exif=turned),
        "plain.avif": encoded(noise, "AVIF"),
        "plain.ppm": encoded(noise, "PPM"),
    }


def check(path: Path, data: bytes) -> bool:
    """Inspects a file at both depths; whether it was accepted at full depth, and then it must decode."""
    path.write_bytes(data)
    with suppress(ImageRefused):
        inspect_image(path, 10_000_000, "header")
    try:
        facts = inspect_image(path, 10_000_000)
    except ImageRefused:
        return False
    image = load_rgb(data)
    assert (image.mode, image.size) == ("RGB", (facts.width, facts.height))
    return True


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "image"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in images() if name.endswith((".jpg", ".mpo"))])
def test_every_cut_of_a_jpeg_that_is_accepted_decodes(path: Path, name: str) -> None:
    data = images()[name]
    lengths = {*range(1, len(data), max(1, len(data) // 150)), *range(len(data) - 20, len(data) + 1)}
    accepted = [length for length in sorted(lengths) if check(path, data[:length])]
    assert len(data) in accepted
    if name != "frames.mpo":  # where the second picture is the one that is cut
        assert all(length > len(data) - 20 for length in accepted)


@pytest.mark.slow
@SETTINGS
@given(st.sampled_from(sorted(images())).flatmap(lambda name: damaged(images()[name])))
def test_damaged_images_that_are_accepted_decode(path: Path, data: bytes) -> None:
    check(path, data)


@pytest.mark.slow
@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes_are_no_crash(path: Path, data: bytes) -> None:
    check(path, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
PATHS = (
    st.sampled_from(["good.png", "nowhere.png", "../good.png", ".", "", "good.png\0", "s3://", "x" * 5000]) | st.text()
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "task_type": st.sampled_from(["t2i", "edit", "ic", "text_to_image", "in_context"]) | JSON,
        "instruction": st.text() | JSON,
        "input_images": st.lists(PATHS, max_size=7) | JSON,
        "output_image": PATHS | JSON,
        "more": JSON,
    },
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Lines of a .jsonl: rows, rows that are damaged as text, and any bytes."""
    parts = []
    for row in draw(st.lists(ROWS | st.binary(max_size=40), max_size=12)):
        text = (
            row
            if isinstance(row, bytes)
            else json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "replace")
        )
        cut = draw(st.integers(0, len(text))) if draw(st.integers(0, 3)) == 0 else len(text)
        parts.append(text[:cut] + draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"])))
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return start + b"".join(parts) + draw(st.sampled_from([b"", b"{}", b" "]))


@pytest.mark.slow
@FUZZ
@given(lines(), st.sampled_from(["full", "header"]))
def test_every_line_is_accounted_for_once(data: bytes, depth: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "good.png").write_bytes(images()["rgb.png"])
        (folder / "a.jsonl").write_bytes(data)
        summary = validate_source("a", [folder / "a.jsonl"], folder / "out", Checks(depth), progress=False)
        accepted = pq.read_table(folder / "out" / "samples.parquet")["line"].to_pylist()
        ledger = (folder / "out" / "rejected.jsonl").read_text(encoding="utf-8")
        rejected = [json.loads(line) for line in ledger.splitlines()]
    found = data.split(b"\n")
    found = found[:-1] if found[-1] == b"" else found
    blank = [
        k for k, line in enumerate(found, 1) if not (line.removeprefix(b"\xef\xbb\xbf") if k == 1 else line).strip()
    ]
    assert sorted([*accepted, *(row["line"] for row in rejected), *blank]) == list(range(1, len(found) + 1))
    assert (summary["accepted"], summary["rejected"]) == (len(accepted), len(rejected))
    assert summary["blank_lines"] == len(blank)
    assert summary["reasons"] == {
        reason: [row["reason"] for row in rejected].count(reason) for reason in summary["reasons"]
    }
    assert all(row["reason"] and row["message"] for row in rejected)
