"""Images on their way into shards: upright, RGB, within the limits; untouched where they are all that already.

Pillow says what a file is and writes it anew. JPEG, PNG and WebP that have to shrink are decoded and resized by
libvips,
in strips: less memory and time than a full decode. It is imported at the first such image.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

from PIL import Image

from omnitune.config.choices import IMAGE_FORMATS
from omnitune.images.colour import fits, is_foreign, profile_of, to_srgb
from omnitune.images.decode import check_data, decode_pixels, open_image, own_limits
from omnitune.images.formats import FORMATS
from omnitune.images.metadata import EXIF_ORIENTATION, SIXTEEN_BITS, TURNED, orientation
from omnitune.images.png import has_late_orientation, image_stream, without_long_text
from omnitune.images.read import read_bytes
from omnitune.images.resize import resize, target_size, to_pil, to_rgb, to_tensor, upright
from omnitune.images.verdicts import MAX_PIXELS, check_before_decoding, check_bytes, most_bytes

__all__ = [
    "ImageLimits",
    "PreparedImage",
    "UndecodableImage",
    "check_behind_header",
    "check_image",
    "load_rgb",
    "prepare_image",
    "read_rgb",
    "resize",
    "target_size",
    "to_pil",
    "to_rgb",
    "to_tensor",
]

KEPT_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
KEPT_MODES = frozenset({"RGB", "L", "P"})  # each becomes RGB on loading without a loss
VIPS_LOADERS = {
    "JPEG": "jpegload_source",
    "MPO": "jpegload_source",
    "PNG": "pngload_source",
    "WEBP": "webpload_source",
}
DECODER_FACTORS = (8, 4, 2)  # by which a JPEG or WebP can be shrunk while it is decoded
# What the decoder shrinks by is cruder than Lanczos. 1.25 times the wanted size, resized the rest of the way, differs
# from a full decode and Lanczos by noise of 44 dB in the worst of the pictures tried, the wanted size itself by 37 dB.
DECODER_MARGIN = 1.25


class UndecodableImage(ValueError):  # noqa: N818  (beside ImageRefused: what became of an image)
    """An image whose bytes cannot be decoded."""


@dataclass(frozen=True)
class ImageLimits:
    """How large images may be in shards, and how those that have to be changed are written.

    Attributes:
        max_output_pixels: of an output image, width x height in pixels.
        max_input_pixels: of an input image; a list's k-th entry holds for samples with k inputs.
        max_side_length: of any side, in pixels.
        image_format: of images that are changed, a name of IMAGE_FORMATS.
        image_quality: 1 to 100, of formats that have one.
    """

    max_output_pixels: int
    max_input_pixels: int | Sequence[int]
    max_side_length: int
    image_format: str = "jpeg"
    image_quality: int = 95

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "ImageLimits":
        """From the keys of `data` that affect shards."""
        return cls(**{field.name: keys[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        if self.image_format not in IMAGE_FORMATS:
            known = ", ".join(IMAGE_FORMATS)
            raise ValueError(f"image_format: {self.image_format!r} is not allowed; use one of {known}")
        if not 1 <= self.image_quality <= 100:
            raise ValueError(f"image_quality: {self.image_quality} is not allowed; use 1 to 100")

    def input_limit(self, num_inputs: int) -> int:
        """Limit in pixels for each input image of a sample with that many; the last entry holds for more."""
        if isinstance(self.max_input_pixels, int):
            return self.max_input_pixels
        return self.max_input_pixels[min(num_inputs, len(self.max_input_pixels)) - 1]

    def note(self, max_inputs: int) -> str | None:
        """A sentence for the log where samples have more inputs than the list of limits has entries."""
        if isinstance(self.max_input_pixels, int) or max_inputs <= len(self.max_input_pixels):
            return None
        return (
            f"data.max_input_pixels has {len(self.max_input_pixels)} entries and samples have up to {max_inputs} input "
            f"images; the last entry, {self.max_input_pixels[-1]} pixels, holds for them"
        )


class PreparedImage(NamedTuple):
    """An image as it goes into a shard: file, extension, size in pixels, whether its pixels are kept as they were."""

    data: bytes
    extension: str
    width: int
    height: int
    kept: bool


def load_rgb(file: bytes | Path) -> Image.Image:
    """Decodes a file, or its bytes, into an upright RGB image, transparency over white, colours as sRGB.

    Raises what Pillow raises on bytes that are no image.
    """
    with own_limits(), _stream(file) as stream:
        image = Image.open(image_stream(stream), formats=FORMATS)
        image.load()
        if image.mode == "RGB" and orientation(image) == 1 and _is_plain(image):
            return image  # as nearly all are in training, which each of the steps below would copy
        return _upright_rgb(image)


def read_rgb(place: str | Path) -> Image.Image:
    """An image of the user's own as `load_rgb` gives it, once it has passed what validation looks at.

    Raises:
        ImageRefused: where it is no image in a format that validation knows, or a damaged one; names the place.
    """
    data = read_bytes(place, most_bytes(MAX_PIXELS))
    check_image(data, place)
    return load_rgb(data)


def check_image(data: bytes, place: str | Path) -> str:
    """The format, as Pillow calls it, of an image's bytes that pass what validation looks at; all pixels are decoded.

    Raises:
        ImageRefused: as read_rgb; names the place, where the bytes come from.
    """
    check_bytes(place, len(data), MAX_PIXELS)
    with own_limits():
        image = open_image(data, place)
        check_before_decoding(image, place, MAX_PIXELS)
        decode_pixels(image, data, place)
    return image.format or ""


def prepare_image(
    file: bytes | Path, max_pixels: int, max_side_length: int, image_format: str = "jpeg", image_quality: int = 95
) -> PreparedImage:
    """Brings an image within the limits.

    Args:
        file: a file's bytes, or its path: then it is not read into memory where it can be read in pieces.
        max_pixels, max_side_length: limits of width x height and of the longer side, in pixels.
        image_format, image_quality: of an image that is changed, as in `ImageLimits`.

    Returns:
        The original bytes where they are a JPEG, PNG or WebP that needs no change at all, of a PNG without text that
        other readers may find too long; otherwise an image of the
        asked format, resized by Lanczos.

    Raises:
        UndecodableImage: where the bytes are no image, or a damaged one.
        ValueError: where a side is rounded down to nothing under the limits.
    """
    try:
        image, turn = _header(file)
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        raise UndecodableImage(f"cannot be opened: {error}") from None
    upright = image.size[::-1] if turn in TURNED else image.size
    size = target_size(*upright, max_pixels, max_side_length)
    if size == image.size and turn == 1 and _is_plain(image):
        with _stream(file) as stream:
            data = without_long_text(stream)
        return PreparedImage(data, KEPT_EXTENSIONS[image.format or ""], *size, True)
    try:
        rgb = _resized(file, image, turn, size)
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        raise UndecodableImage(f"cannot be decoded: {error}") from None
    rgb.info.clear()  # comments and profiles of the original
    kind = IMAGE_FORMATS[image_format]
    quality = {"quality": image_quality} if kind.has_quality else {}
    buffer = io.BytesIO()
    rgb.save(buffer, kind.pillow, **kind.options, **quality)
    return PreparedImage(buffer.getvalue(), kind.extension, *size, False)


def check_behind_header(data: bytes, place: str | Path, decode: bool) -> None:
    """Looks at what validation at depth `header` has not: frames, layout and zeros, with `decode` its pixels.

    Raises ImageRefused where depth `full` would have.
    """
    with own_limits():
        image = open_image(data, place)
        check_before_decoding(image, place, image.width * image.height)
        (decode_pixels if decode else check_data)(image, data, place)


def _stream(file: bytes | Path) -> IO[bytes]:
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _header(file: bytes | Path) -> tuple[Image.Image, int]:
    """The image with nothing decoded, where that is possible, and its EXIF orientation."""
    with own_limits(), _stream(file) as stream:
        image = Image.open(image_stream(stream), formats=FORMATS)
        # Pillow turns a TIFF upright by itself as it loads it.
        if image.format == "TIFF" or (image.format == "PNG" and has_late_orientation(stream)):
            image.load()
        return image, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8."""
    if image.format != "PNG":
        return orientation(image)
    metadata = Image.new("1", (1, 1))  # asked for its EXIF, an opened PNG would decode all of its pixels first
    metadata.info = image.info
    return orientation(metadata)


def _resized(file: bytes | Path, image: Image.Image, turn: int, size: tuple[int, int]) -> Image.Image:
    """The image as upright RGB at `size`; `image` is its header."""
    stored = size[::-1] if turn in TURNED else size
    if image.format in VIPS_LOADERS and stored != image.size:
        try:
            small = _shrink(file, image, stored)
        except _vips().Error:  # what is an image and what is damaged is Pillow's to say: it was validated by Pillow
            return resize(load_rgb(file), size)
        if small.mode == "RGB" and turn == 1 and not is_foreign(image):
            return small
        small.info["icc_profile"] = image.info.get("icc_profile")
        small.getexif()[EXIF_ORIENTATION] = turn
        return _upright_rgb(small)
    return resize(load_rgb(file), size)


def _shrink(file: bytes | Path, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as it is stored, resized to `size`: L, RGB or CMYK of 8 bits, transparency over white."""
    load = getattr(_vips().Image, VIPS_LOADERS[image.format or ""])
    ratio = min(image.width / size[0], image.height / size[1]) / DECODER_MARGIN
    factor = next((factor for factor in DECODER_FACTORS if factor <= ratio), 1)
    options: dict[str, float] = {}
    if image.format != "PNG":
        options = {"scale": 1 / factor} if image.format == "WEBP" else {"shrink": factor}
    sources = _vips().Source
    source = sources.new_from_memory(file) if isinstance(file, bytes) else sources.new_from_file(str(file))
    picture = load(source, access="sequential", fail_on="error", **options)
    if picture.hasalpha():  # over black, plus white where it is transparent
        picture = (picture.flatten() + picture[picture.bands - 1].invert()).cast(picture.format)
    picture = picture.resize(size[0] / picture.width, vscale=size[1] / picture.height, kernel="lanczos3")
    if picture.format == "ushort":
        picture = (picture / 257).rint().cast("uchar")
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[picture.bands]
    return Image.frombytes(mode, size, picture.write_to_memory())


@cache
def _vips() -> ModuleType:
    """libvips, which starts threads when it is used: a process must not be forked from one that has used it."""
    import pyvips

    pyvips.cache_set_max(0)  # operations would keep the images that they worked on
    pyvips.concurrency_set(1)  # some buffers have so many lines for each thread
    return pyvips


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = upright(image)
    return to_rgb(to_srgb(image) if is_foreign(image) else image)


def _is_plain(image: Image.Image) -> bool:
    """Whether every reader takes the file, if it is upright, for the same opaque sRGB picture."""
    return (
        image.format in KEPT_EXTENSIONS
        and image.mode in KEPT_MODES
        and not SIXTEEN_BITS.search(str([tile[3] for tile in getattr(image, "tile", ())]))
        and not image.has_transparency_data
        and (not profile_of(image) or (fits(image) and not is_foreign(image)))
    )
