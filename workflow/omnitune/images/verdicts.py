"""Why an image cannot be trained on: each verdict has a name, and limits are looked at before anything is decoded."""

from pathlib import Path

from PIL import Image

from omnitune.errors import Refused

MAX_PIXELS = 178_956_970  # where Pillow itself takes an image for an attack: half a gigabyte as RGB
MIN_SIDE = 16  # one patch: VAE factor 8 x patch size 2
# No image needs more bytes for a pixel (RGBA of 16 bits), beside its metadata: a longer file is not read.
BYTES_PER_PIXEL, METADATA_BYTES = 8, 64 << 20
DECODE_SECONDS = 60  # of a processor for one image; those of most pixels that are allowed take a quarter of that


class ImageRefused(Refused):
    """An image that cannot be trained on."""


def most_bytes(max_pixels: int) -> int:
    """More bytes than an image of so many pixels has."""
    return max_pixels * BYTES_PER_PIXEL + METADATA_BYTES


def check_bytes(place: str | Path, size: int, max_pixels: int) -> None:
    """Raises ImageRefused, empty_file or too_many_bytes, for a file of `size` bytes."""
    if not size:
        raise ImageRefused("empty_file", f"{place} has no content")
    if size > most_bytes(max_pixels):
        message = f"{place} has more than {most_bytes(max_pixels)} bytes, which is more than {max_pixels} pixels need"
        raise ImageRefused("too_many_bytes", message)


def check_pixels(place: str | Path, width: int, height: int, max_pixels: int) -> None:
    """Raises ImageRefused, too_small or too_many_pixels, for an image of that size in pixels."""
    if width < 1 or height < 1:
        raise too_small(place, width, height)
    if width * height > max_pixels:
        message = f"{place} is {width} x {height} = {width * height} pixels; at most {max_pixels} are decoded"
        raise ImageRefused("too_many_pixels", message)


def too_small(place: str | Path, width: int, height: int) -> ImageRefused:
    """The verdict on an image with a side below MIN_SIDE."""
    return ImageRefused("too_small", f"{place} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")


def check_before_decoding(image: Image.Image, place: str | Path, max_pixels: int) -> None:
    """Raises ImageRefused for an opened image of too many pixels, of floats or of several frames."""
    check_pixels(place, *image.size, max_pixels)
    if image.mode == "F":
        message = f"{place} has floating-point pixels, whose range is not known; save it with 8 or 16 bits per channel"
        raise ImageRefused("float_pixels", message)
    # An MPO is a photograph whose further pictures are previews or depth maps: the first one is the picture.
    frames = 1 if image.format == "MPO" else _number_of_frames(image, place)
    if frames > 1:
        raise ImageRefused("animated", f"{place} holds {frames} frames; save the wanted one as an image of its own")


def _number_of_frames(image: Image.Image, place: str | Path) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting reads the whole file in some formats and may raise anything
        raise ImageRefused("corrupt", f"{place}: its frames cannot be counted: {error}") from None
