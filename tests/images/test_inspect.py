"""What validation looks at in an image: each reason to refuse one, and equal facts by its header and by all of it."""

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from helpers.pictures import encoded
from helpers.samples import noisy_picture
from omnitune.images.inspect import Depth, inspect_image
from omnitune.images.metadata import EXIF_ORIENTATION
from omnitune.images.verdicts import METADATA_BYTES, ImageRefused

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(encoded(noisy_picture()))
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def broken_images() -> dict[str, tuple[bytes, str]]:
    jpeg, png, webp = (encoded(noisy_picture(64, 64), kind) for kind in ("JPEG", "PNG", "WEBP"))
    frames = [noisy_picture(seed=k) for k in range(3)]
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
        "thin.png": (encoded(noisy_picture(15, 400)), "too_small"),
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
        data = encoded(noisy_picture(40, 40), kind)
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
        image.write_bytes(encoded(noisy_picture()))
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
        file.write(encoded(noisy_picture()))
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
        (tmp_path / name).write_bytes(encoded(noisy_picture(), kind, exif=exif))
        facts = inspect_image(tmp_path / name)
        assert (facts.width, facts.height, facts.format) == (48, 32, kind)
    (tmp_path / "b.png").write_bytes(encoded(noisy_picture(), "JPEG"))
    assert inspect_image(tmp_path / "b.png").notes == ("extension '.png' holds JPEG",)


@cache
def header_cases() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    large = noisy_picture(400, 300)
    return {
        **{
            f"plain.{kind}": encoded(large, kind)
            for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
        },
        **{f"turned.{kind}": encoded(large, kind, exif=turned) for kind in ("JPEG", "PNG", "WEBP", "TIFF")},
        "lossless.webp": encoded(large, "WEBP", lossless=True),
        "alpha.webp": encoded(noisy_picture(400, 300, "RGBA"), "WEBP"),
        "lossless_alpha.webp": encoded(noisy_picture(400, 300, "RGBA"), "WEBP", lossless=True),
        "profile.webp": encoded(large, "WEBP", icc_profile=b"profile" * 100),
        "long_profile.jpg": encoded(large, "JPEG", icc_profile=b"profile" * 20_000),
        "grey16.png": encoded(Image.new("I;16", (400, 300))),
        "cmyk.jpg": encoded(noisy_picture(400, 300, "CMYK"), "JPEG"),
    }


@pytest.mark.parametrize("name", list(header_cases()))
def test_the_header_tells_what_decoding_tells(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(header_cases()[name])
    full = inspect_image(tmp_path / name)
    assert (full.width, full.height) == ((300, 400) if name.startswith("turned") else (400, 300))
    assert inspect_image(tmp_path / name, depth="header") == replace(full, sha256=None)


def test_the_header_is_read_from_the_first_bytes_alone(tmp_path: Path) -> None:
    noise = noisy_picture(400, 300)
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
        ("a.jpg", encoded(noisy_picture(32, 32, "CMYK"), "JPEG"), "colour mode CMYK, converted to RGB"),
        ("a.png", encoded(noisy_picture(32, 32, "RGBA")), "transparency, laid over white"),
        ("a.png", encoded(noisy_picture(), "JPEG"), "extension '.png' holds JPEG"),
        ("a", encoded(noisy_picture(), "PNG"), "extension '' holds PNG"),
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
