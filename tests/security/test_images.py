"""Pictures that want to run a program, take all time, or look whole and are not; and good ones that look odd."""

import io
import json
import os
import random
import signal
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers.pictures import encoded
from omnitune.evaluation.prompts import open_image
from omnitune.images import decode
from omnitune.images.decode import open_image as open_header
from omnitune.images.inspect import Depth, inspect_image
from omnitune.images.memory import check_memory
from omnitune.images.prepare import load_rgb, prepare_image
from omnitune.images.verdicts import ImageRefused
from omnitune.validation.source import validate_source

pytestmark = pytest.mark.unit


def noisy(width: int = 320, height: int = 240) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.full_like(x, 128)], -1) + np.random.default_rng(0).normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def with_thumbnail() -> bytes:
    thumbnail = encoded(noisy(64, 48), "JPEG")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    return encoded(noisy(), "JPEG", quality=90, exif=exif.tobytes() + thumbnail)


FILES = {
    "baseline": encoded(noisy(), "JPEG", quality=90),
    "thumbnail": with_thumbnail(),
    "optimized": encoded(noisy(), "JPEG", quality=90, optimize=True),
    "restarts": encoded(noisy(), "JPEG", restart_marker_rows=1),
    "progressive": encoded(noisy(), "JPEG", quality=90, progressive=True),
    "png": encoded(noisy(), "PNG"),
    "webp": encoded(noisy(), "WEBP", quality=90),
    "avif": encoded(noisy(), "AVIF", speed=10),
    "jpeg 2000": encoded(noisy(), "JPEG2000"),
    "gif": encoded(noisy(), "GIF"),
}


def accepted(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        inspect_image(path)
    except ImageRefused:
        return False
    return True


def damaged(data: bytes, place: int, kind: str) -> bytes:
    if kind == "cut":
        return data[:place]
    if kind == "hole":
        return data[:place] + bytes(min(4096, len(data) - place)) + data[place + 4096 :]
    zeros = bytes(len(data) - place)
    return data[:place] + (zeros if kind == "zeros" else zeros[:-2] + data[-2:])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_files_that_lose_their_end_are_refused(tmp_path: Path, name: str) -> None:
    data, places = FILES[name], random.Random(name)
    assert accepted(tmp_path / "x", data)
    for kind in ("cut", "zeros", "zeros and an end", "hole"):
        for _ in range(12):
            place = places.randrange(40, int(len(data) * 0.99))
            assert not accepted(tmp_path / "x", damaged(data, place, kind)), (kind, place)


EVEN = [
    encoded(Image.new("RGB", (1600, 1200), colour), kind, **options)
    for colour in ("black", "white", (9, 80, 200))
    for kind, options in [
        ("JPEG", {"optimize": True}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "method": 0}),
        ("AVIF", {"speed": 10}),
        ("JPEG2000", {}),
    ]
]


@pytest.mark.parametrize("number", range(len(EVEN)))
def test_even_pictures_stay(tmp_path: Path, number: int) -> None:
    assert accepted(tmp_path / "x", EVEN[number])


def test_what_follows_the_end_of_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    assert accepted(tmp_path / "x", FILES["baseline"] + b"SEFH" + bytes(5000) + b"SEFT")


def test_a_jpeg_of_thousands_of_scans_is_refused_unread(tmp_path: Path) -> None:
    data = FILES["progressive"]
    scan = bytes.fromhex("ffda0008010100010000")  # one coefficient of the first component, with no data
    with pytest.raises(ImageRefused, match="too_many_scans"):
        (tmp_path / "x").write_bytes(data[:-2] + scan * 5000 + data[-2:])
        inspect_image(tmp_path / "x")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"printer\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
def test_long_metadata_of_a_png_is_no_damage(tmp_path: Path, extra: bytes) -> None:
    png = FILES["png"][:33] + extra + FILES["png"][33:]
    assert accepted(tmp_path / "x", png)
    inspect_image(tmp_path / "x", depth="header")
    assert open_image(tmp_path / "x").size == (320, 240)
    assert prepare_image(png, 10**6, 2048).width == 320


def test_floats_are_refused(tmp_path: Path) -> None:
    assert not accepted(tmp_path / "x", encoded(Image.new("F", (64, 64), 0.5), "TIFF"))


def test_generate_and_evaluate_start_no_program(tmp_path: Path) -> None:
    path = tmp_path / "x.eps"
    noisy(64, 64).save(path, "EPS")
    with pytest.raises(ValueError, match=r"x\.eps: cannot be read as an image: .*no image in a format"):
        open_image(path)


def profile(primaries: tuple, gamma: float, space: bytes = b"RGB ", name: bytes = b"sRGB") -> bytes:
    """An ICC profile of version 2 with primaries, or of grey."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = name + b"\0"
    tags = [(b"desc", b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79))]
    tags += [(b"wtpt", xyz(0.9642, 1, 0.8249))]
    if space == b"RGB ":
        tags += [(n, xyz(*p)) for n, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)]
        tags += [(n, curve) for n in (b"rTRC", b"gTRC", b"bTRC")]
    else:
        tags += [(b"kTRC", curve)]
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for tag, content in tags:
        padded = content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(padded))
        body += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + bytes(24) + xyz(0.9642, 1, 0.8249)[8:] + b"lcms"
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
FLAT = Image.new("RGB", (96, 64), (55, 128, 200))


@pytest.mark.parametrize(
    ("image", "icc", "colour"),
    [
        (FLAT, profile(P3, 2.2), (0, 130, 206)),
        (FLAT, profile(SRGB, 1), (128, 188, 229)),
        (FLAT.convert("LA"), profile((), 1, b"GRAY"), (178, 178, 178)),
        (FLAT.convert("L"), profile(P3, 2.2), (114, 114, 114)),
        (FLAT, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), (55, 128, 200)),
    ],
)
def test_one_reader_gives_one_colour(tmp_path: Path, image: Image.Image, icc: bytes, colour: tuple) -> None:
    data = encoded(image, "PNG", icc_profile=icc)
    (tmp_path / "x.png").write_bytes(data)
    shrunk = Image.open(io.BytesIO(prepare_image(data, 48 * 32, 48, "png").data))
    kept = Image.open(io.BytesIO(prepare_image(data, 96 * 64, 96, "png").data)).convert("RGB")
    for read in (load_rgb(data), open_image(tmp_path / "x.png"), shrunk, kept):
        assert np.abs(np.asarray(read, int) - colour).max() <= 3
    used = colour not in {(55, 128, 200), (114, 114, 114)}
    assert any("converted to sRGB" in note for note in inspect_image(tmp_path / "x.png").notes) == used


def reasons(folder: Path, **pictures: bytes) -> dict[str, str]:
    """Validates a row for each picture; the reasons of those that are refused, by name."""
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    rows = [{"task_type": "t2i", "instruction": "x", "output_image": name} for name in pictures]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validate_source("a", [folder / "a.jsonl"], folder / "out", workers=2, progress=False)
    ledger = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    return {row["row"]["output_image"]: row["reason"] for row in ledger}


def test_a_picture_that_takes_too_long_is_a_row_of_the_ledger(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # forked, whatever other tests have left
    monkeypatch.setattr("omnitune.images.inspect.DECODE_SECONDS", 0.3)
    data = encoded(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    scan = bytes.fromhex("ffda00080101003f3f00")  # the last coefficient of each block, with no data
    slow = data[:-2] + scan * 450 + data[-2:]
    assert reasons(tmp_path, one=FILES["png"], slow=slow, two=FILES["webp"]) == {"slow": "decoding_too_slow"}


def test_a_picture_that_ends_its_process_is_a_row_of_the_ledger(tmp_path: Path, monkeypatch) -> None:
    def opened(data: bytes, place: str) -> Image.Image:
        if place.endswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if place.endswith("greedy"):
            raise MemoryError
        return decode.open_image(data, place)

    monkeypatch.setattr(threading, "active_count", lambda: 1)  # forked, whatever other tests have left
    monkeypatch.setattr("omnitune.images.inspect.open_image", opened)
    png = FILES["png"]
    found = reasons(tmp_path, one=png, killed=png, two=png, greedy=png, three=png)
    assert found == {"killed": "decoder_died", "greedy": "decoder_died"}
    assert "SIGKILL, two times, most likely for want of memory" in (tmp_path / "out" / "rejected.jsonl").read_text()


def sized(name: str, side: int) -> bytes:
    """A small file whose header says that it is a square of that side."""
    small = Image.new("RGB", (64, 64))
    if name == "webp":
        data = encoded(small, "WEBP")
        return data[:26] + struct.pack("<HH", side, side) + data[30:]
    data = encoded(small, {"avif": "AVIF", "jpeg 2000": "JPEG2000"}[name])
    mark = {"avif": b"ispe\0\0\0\0", "jpeg 2000": b"ihdr"}[name]
    place = data.index(mark) + len(mark)
    return data[:place] + struct.pack(">II", side, side) + data[place + 8 :]


@pytest.mark.parametrize("depth", ["full", "header"])
@pytest.mark.parametrize("name", ["webp", "avif", "jpeg 2000"])
def test_pictures_that_take_all_memory_are_refused_unread(tmp_path: Path, name: str, depth: Depth) -> None:
    (tmp_path / "x").write_bytes(sized(name, 13_000))
    with pytest.raises(ImageRefused, match=r"too_much_memory: .*13000 x 13000 pixels\) takes about \d,\d\d\d MB"):
        inspect_image(tmp_path / "x", depth=depth)


@pytest.mark.parametrize("kind", [{}, {"progressive": True}])
def test_large_photographs_stay(kind: dict) -> None:
    data = encoded(noisy(64, 64), "JPEG", **kind)
    place = data.index(b"\xff\xc2" if kind else b"\xff\xc0") + 5
    header = open_header(data[:place] + struct.pack(">HH", 13_000, 13_000) + data[place + 4 :], "x")
    check_memory(header, 50_000_000, "x")
