"""Images on their way into shards: what is kept, what is changed, and that the fast way shows what the exact does."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from helpers.pictures import encoded, opened, picture
from omnitune.images.notes import notes_on
from omnitune.images.prepare import (
    ImageLimits,
    UndecodableImage,
    load_rgb,
    prepare_image,
    resize,
    target_size,
)

pytestmark = pytest.mark.unit

FIGURES = Path(__file__).parents[1] / "data/reference/figures.json"
ORIENTATION = 0x0112


def test_sizes_are_the_published_ones() -> None:
    for width, height, pixels, side, new_width, new_height in json.loads(FIGURES.read_text())["resize"]:
        assert target_size(width, height, pixels, side) == (new_width, new_height)


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (encoded(picture(64, 48), "JPEG", quality=70), "jpg"),
        (encoded(picture(64, 48), "PNG"), "png"),
        (encoded(picture(64, 48), "WEBP"), "webp"),
        (encoded(picture(64, 48, "L"), "JPEG"), "jpg"),
        (encoded(picture(64, 48, "P"), "PNG"), "png"),
        (
            encoded(
                picture(64, 48), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
            ),
            "png",
        ),
    ],
)
def test_images_that_need_no_change_keep_their_bytes(data: bytes, extension: str) -> None:
    assert prepare_image(data, 64 * 64, 64) == (data, extension, 64, 48, True)


def foreign_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(64, 48), "BMP"),
        encoded(picture(64, 48), "GIF"),
        encoded(picture(64, 48, "RGBA"), "PNG"),
        encoded(picture(64, 48, "CMYK"), "JPEG"),
        encoded(picture(64, 50), "PNG"),
        encoded(picture(80, 60), "JPEG"),
        encoded(picture(64, 48), "PNG", icc_profile=foreign_profile()),
        encoded(picture(64, 48), "PNG", icc_profile=b"damaged"),
    ],
)
def test_other_images_become_jpeg_without_chroma_subsampling(data: bytes) -> None:
    result = prepare_image(data, 64 * 64, 64)
    image = opened(result.data)
    assert (result.extension, result.kept, image.format, image.mode) == ("jpg", False, "JPEG", "RGB")
    assert image.size == (result.width, result.height) == (64, 48)
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
    assert not image.info.get("icc_profile")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_is_applied_before_the_limits(kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = picture(128, 96).transpose(Image.Transpose.ROTATE_90)
    result = prepare_image(encoded(turned, kind, exif=exif), 64 * 64, 64)
    assert (result.width, result.height, result.kept) == (64, 48, False)
    assert ORIENTATION not in opened(result.data).getexif()
    difference = np.asarray(opened(result.data), int) - np.asarray(picture(128, 96).resize((64, 48)), int)
    assert np.abs(difference).mean() < 6


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    pixels = np.asarray(opened(prepare_image(encoded(image), 64 * 64, 64).data), int)
    assert pixels[:, :12].min() > 245
    assert np.abs(pixels[:, 20:] - [255, 0, 0]).max() < 10


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((32, 32), 128 * 257, np.uint16))
    pixels = np.asarray(opened(prepare_image(encoded(image), 64 * 64, 64).data), int)
    assert np.abs(pixels - 128).max() <= 1


def test_a_size_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="each side needs at least 16"):
        prepare_image(encoded(picture(400, 20)), 64 * 64, 64)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Detail at all scales, as photographs have, and the noise of a sensor."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 11):
        field = Image.fromarray(random.integers(0, 256, (2**octave, 2**octave, 3), np.uint8))
        pixels += 0.65**octave * (np.asarray(field.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128)
    pixels = pixels / pixels.std() * 45 + 120 + random.normal(0, 3, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PHOTOGRAPH = photograph(1000, 752)
SHAPES = Image.fromarray(np.kron(np.arange(12).reshape(3, 4) % 3, np.full((251, 250), 127)).astype(np.uint8))


def with_alpha(image: Image.Image, exact: bool = False) -> Image.Image:
    """With hard edges between opaque, half and fully transparent; `exact`: there is black under what is transparent."""
    result = image.convert("LA" if image.mode == "L" else "RGBA")
    if exact:
        result.paste(
            0, mask=SHAPES.resize(image.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value == 0))
        )
    result.putalpha(SHAPES.resize(image.size, Image.Resampling.NEAREST))
    return result


def sixteen_bits(image: Image.Image) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads and does not write."""
    pixels = np.asarray(image, np.uint16).reshape(image.height, image.width, -1)
    pixels = pixels * 257 - (pixels > 0) * 100
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def matrix_profile() -> bytes:
    """A colour profile like sRGB but for red and blue, which change places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")


def without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def with_late_exif(png: bytes, exif: Image.Exif) -> bytes:
    end = png.index(b"IEND") - 4
    return png[:end] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + png[end:]


FILES = {
    "JPEG": encoded(PHOTOGRAPH, "JPEG", quality=90),
    "JPEG 4:4:4": encoded(PHOTOGRAPH, "JPEG", quality=95, subsampling=0),
    "JPEG progressive": encoded(PHOTOGRAPH, "JPEG", quality=90, progressive=True),
    "JPEG grey": encoded(PHOTOGRAPH.convert("L"), "JPEG", quality=90),
    "JPEG CMYK": encoded(PHOTOGRAPH.convert("CMYK"), "JPEG", quality=90),
    "JPEG CMYK, not Adobe's": without_adobe(encoded(PHOTOGRAPH.convert("CMYK"), "JPEG", quality=90)),
    "JPEG turned": encoded(PHOTOGRAPH, "JPEG", quality=90, exif=turned(6)),
    "JPEG mirrored": encoded(PHOTOGRAPH, "JPEG", quality=90, exif=turned(5)),
    "JPEG with a profile": encoded(PHOTOGRAPH, "JPEG", quality=90, icc_profile=matrix_profile()),
    "MPO": encoded(PHOTOGRAPH, "MPO", quality=90, save_all=True, append_images=[PHOTOGRAPH]),
    "PNG": encoded(PHOTOGRAPH, compress_level=1),
    "PNG turned": encoded(PHOTOGRAPH, compress_level=1, exif=turned(8)),
    "PNG turned behind its pixels": with_late_exif(encoded(PHOTOGRAPH, compress_level=1), turned(8)),
    "PNG with a profile": encoded(with_alpha(PHOTOGRAPH), compress_level=1, icc_profile=matrix_profile()),
    "PNG grey": encoded(PHOTOGRAPH.convert("L"), compress_level=1),
    "PNG grey and alpha": encoded(with_alpha(PHOTOGRAPH.convert("L")), compress_level=1),
    "PNG palette": encoded(PHOTOGRAPH.quantize(256), compress_level=1),
    "PNG palette and alpha": encoded(with_alpha(PHOTOGRAPH).quantize(256), compress_level=1),
    "PNG alpha": encoded(with_alpha(PHOTOGRAPH), compress_level=1),
    "PNG alpha over black": encoded(with_alpha(PHOTOGRAPH, exact=True), compress_level=1),
    "PNG one transparent grey": encoded(PHOTOGRAPH.convert("L"), compress_level=1, transparency=120),
    "PNG 16 bits": sixteen_bits(PHOTOGRAPH),
    "PNG 16 bits grey": sixteen_bits(PHOTOGRAPH.convert("L")),
    "PNG 16 bits and alpha": sixteen_bits(with_alpha(PHOTOGRAPH)),
    "WebP": encoded(PHOTOGRAPH, "WEBP", quality=90),
    "WebP turned": encoded(PHOTOGRAPH, "WEBP", quality=90, exif=turned(6)),
    "WebP alpha": encoded(with_alpha(PHOTOGRAPH), "WEBP", quality=90),
    "WebP lossless, alpha over black": encoded(with_alpha(PHOTOGRAPH, exact=True), "WEBP", lossless=True, exact=True),
}


def difference(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    squares = (np.asarray(first, float) - np.asarray(second, float)) ** 2
    return float(10 * np.log10(255**2 / max(squares.mean(), 1e-9)))


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [640 * 480, 384 * 288])
@pytest.mark.parametrize("name", FILES)
def test_the_fast_way_shows_what_a_full_decode_and_lanczos_do(name: str, pixels: int) -> None:
    result = prepare_image(FILES[name], pixels, 2048, "png")
    exact = load_rgb(FILES[name])
    size = target_size(*exact.size, pixels, 2048)
    assert (result.width, result.height) == size
    assert difference(opened(result.data), resize(exact, size)) >= 38


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_path_gives_what_its_bytes_do(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    for pixels in (128 * 96, 4096 * 4096):
        assert prepare_image(path, pixels, 4096) == prepare_image(FILES[name], pixels, 4096)


def test_a_profile_is_applied_by_the_fast_way() -> None:
    red = opened(prepare_image(FILES["JPEG with a profile"], 64 * 64, 64, "png").data)
    plain = opened(prepare_image(FILES["JPEG"], 64 * 64, 64, "png").data)
    assert difference(red, plain) < 25


@pytest.mark.slow
def test_each_format_is_written() -> None:
    wanted = opened(prepare_image(FILES["PNG"], 320 * 240, 2048, "png").data)
    lengths = {}
    for image_format, kind in [("jpeg", "JPEG"), ("webp", "WEBP"), ("webp_lossless", "WEBP"), ("png", "PNG")]:
        result = prepare_image(FILES["PNG"], 320 * 240, 2048, image_format, 90)
        image = opened(result.data)
        assert (image.format, image.mode, image.size) == (kind, "RGB", wanted.size)
        assert result.extension == {"JPEG": "jpg"}.get(kind, kind.lower())
        assert not result.kept
        lossless = image_format in {"webp_lossless", "png"}
        assert difference(image, wanted) > (90 if lossless else 33)
        lengths[image_format] = len(result.data)
        worse = prepare_image(FILES["PNG"], 320 * 240, 2048, image_format, 50)
        assert (len(worse.data) == len(result.data)) == lossless
    assert lengths["webp"] < lengths["jpeg"] < lengths["webp_lossless"]


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "webp_lossless", "png"])
def test_a_format_changes_nothing_that_could_be_kept(image_format: str) -> None:
    data = encoded(picture(64, 48), "JPEG")
    assert prepare_image(data, 64 * 64, 64, image_format) == (data, "jpg", 64, 48, True)


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "PNG", "PNG alpha", "WebP"])
def test_what_is_cut_off_is_an_error(name: str) -> None:
    for length in (len(FILES[name]) // 2, 100, 0):
        with pytest.raises(UndecodableImage, match=r"cannot be (decoded|opened)"):
            prepare_image(FILES[name][:length], 64 * 64, 64)


def test_a_jpeg_that_readers_only_warn_of_is_taken() -> None:
    data = FILES["JPEG"]
    scan = data.index(b"\xff\xda") + 2000
    place = next(k for k in range(scan, len(data)) if 0xFF not in data[k - 1 : k + 2])
    spoilt = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
    assert difference(opened(prepare_image(spoilt, 64 * 64, 64, "png").data), resize(load_rgb(spoilt), (64, 48))) >= 38


def test_limits_are_checked() -> None:
    with pytest.raises(
        ValueError, match="image_format: 'gif' is not allowed; use one of jpeg, webp, webp_lossless, png"
    ):
        ImageLimits(64, 64, 64, "gif")
    with pytest.raises(ValueError, match="image_quality: 0 is not allowed"):
        ImageLimits(64, 64, 64, image_quality=0)


sides = st.integers(1, 20_000)


@given(sides, sides, st.integers(256, 4_000_000), st.integers(16, 4096), st.sampled_from([8, 16, 32]))
def test_target_sizes(width: int, height: int, pixels: int, side: int, multiple: int) -> None:
    try:
        new_width, new_height = target_size(width, height, pixels, side, multiple)
    except ValueError:
        ratio = min((pixels / (width * height)) ** 0.5, side / max(width, height), 1.0)
        assert min(width, height) * ratio < multiple
        return
    assert new_width % multiple == new_height % multiple == 0
    assert 0 < new_width <= min(width, side)
    assert 0 < new_height <= min(height, side)
    assert new_width * new_height <= pixels
    # The largest multiples below the sides that keep the aspect exactly, at the tighter of the limits.
    exact = min((pixels / (width * height)) ** 0.5, side / max(width, height), 1.0)
    assert width * exact - multiple < new_width <= width * exact + 1e-6
    assert height * exact - multiple < new_height <= height * exact + 1e-6


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.integers(64, 300),
    st.integers(64, 300),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]),
    st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    st.integers(1, 8),
)
def test_any_image_is_brought_within_the_limits(
    width: int, height: int, mode: str, kind: str, orientation: int
) -> None:
    image = picture(width, height).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    try:
        data = encoded(image, kind, exif=turned(orientation))
    except OSError:
        return  # a mode that this format does not hold
    upright = (width, height) if orientation < 5 else (height, width)
    result = prepare_image(data, 64 * 64, 96)
    written = load_rgb(result.data)
    assert (result.width, result.height) == written.size == target_size(*upright, 64 * 64, 96)
    assert result.kept == (result.data == data)


@pytest.mark.parametrize("words", ["short", "word " * 300_000])
def test_a_png_is_kept_without_text_that_other_readers_refuse(words: str, tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", words, zip=True)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(64, 48), "PNG", pnginfo=text))
    for file in (path, path.read_bytes()):
        prepared = prepare_image(file, 1 << 20, 2048)
        with Image.open(io.BytesIO(prepared.data)) as image:  # as anybody opens it
            assert ("workflow" in image.info) == (words == "short")
            assert image.tobytes() == picture(64, 48).tobytes() and (prepared.kept, prepared.extension) == (True, "png")


def test_a_png_of_16_bits_is_written_anew() -> None:
    prepared = prepare_image(sixteen_bits(picture(64, 48)), 1 << 20, 2048)
    assert not prepared.kept
    assert load_rgb(prepared.data).mode == "RGB"


@pytest.mark.parametrize("max_pixels", [1 << 20, 32 * 32])
def test_a_profile_holds_for_a_palette_as_for_its_colours(max_pixels: int) -> None:
    """Whether or not the image has to shrink."""
    flat = Image.new("RGB", (64, 64), (200, 60, 30))
    colours = []
    for image in (flat, flat.convert("P", palette=Image.Palette.ADAPTIVE)):
        data = encoded(image, "PNG", icc_profile=matrix_profile())
        result = load_rgb(prepare_image(data, max_pixels, 2048, "png").data)
        colours.append(np.asarray(result)[4, 4].astype(int))
    assert np.abs(colours[0] - colours[1]).max() <= 4
    assert np.abs(colours[0] - (200, 60, 30)).max() > 50, "converted at all"


@pytest.mark.parametrize(("gamma", "noted"), [(100_000, True), (45_455, False)])
def test_a_gamma_of_a_png_that_is_not_used_is_noted(tmp_path: Path, gamma: int, noted: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", gamma.to_bytes(4, "big"))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as image:
        assert ("gAMA or cHRM other than those of sRGB, not used" in notes_on("a.png", image)) == noted
