"""Open and decode images by Pillow: whatever it raises on damaged bytes becomes a verdict."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from omnitune.images.formats import FORMATS, riff_bytes, starts_like_an_image
from omnitune.images.verdicts import ImageRefused


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Turns Pillow's fixed limit off, which only warns at half of it, because the caller's is checked instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def open_image(data: bytes, place: str | Path) -> Image.Image:
    """The image with nothing decoded; raises ImageRefused: truncated, corrupt or not_an_image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < riff_bytes(data):
        # The reader of this format does not open such a file at all.
        raise ImageRefused("truncated", f"{place} ends before the image does ({len(data)} bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if starts_like_an_image(data):
            raise ImageRefused("corrupt", f"{place} starts like an image but has no readable header") from None
        known = ", ".join(FORMATS)
        raise ImageRefused("not_an_image", f"{place} is no image in a format that is read here ({known})") from None
    except MemoryError:
        raise
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        raise ImageRefused("corrupt", f"{place}: its header cannot be read: {error}") from None


def decode_pixels(image: Image.Image, data: bytes, place: str | Path) -> None:
    """Decodes all pixels; raises ImageRefused where the file is cut off or damaged."""
    if _is_cut_off(image, data):
        raise ImageRefused("truncated", f"{place} ends before the image does ({len(data)} bytes)")
    try:
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums, which decoding does not look at
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageRefused(reason, f"{place} cannot be decoded: {error or type(error).__name__}") from None


def _is_cut_off(image: Image.Image, data: bytes) -> bool:
    """Whether the format's own end is missing, where its reader reports that as some other damage or not at all."""
    if image.format == "PNG":
        return b"IEND" not in data
    if image.format in {"JPEG", "MPO"}:
        return b"\xff\xd9" not in data
    return False
