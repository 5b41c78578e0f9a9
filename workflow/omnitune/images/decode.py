"""Open and decode images by Pillow: whatever it raises on damaged bytes becomes a verdict."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from omnitune.images.damage import MAX_SCANS, jpeg_layout, zeroed_jpeg, zeroed_pixels
from omnitune.images.formats import FORMATS, other_kind, riff_bytes, starts_like_an_image
from omnitune.images.memory import check_memory
from omnitune.images.png import MAX_PROFILE, image_stream
from omnitune.images.verdicts import ImageRefused


@contextmanager
def own_limits() -> Iterator[None]:
    """Replaces Pillow's limits: that of pixels, as the caller's is checked instead, and that of a PNG's profile."""
    pixels, chunk = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = None, MAX_PROFILE
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = pixels, chunk


def open_image(data: bytes, place: str | Path) -> Image.Image:
    """The image with nothing decoded; raises ImageRefused: truncated, corrupt or not_an_image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < riff_bytes(data):
        # The reader of this format does not open such a file at all.
        raise ImageRefused("truncated", f"{place} ends before the image does ({len(data)} bytes)")
    try:
        return Image.open(image_stream(io.BytesIO(data)), formats=FORMATS)
    except UnidentifiedImageError:
        if starts_like_an_image(data):
            raise ImageRefused("corrupt", f"{place} starts like an image but has no readable header") from None
        known = ", ".join(FORMATS)
        raise ImageRefused(
            "not_an_image", f"{place} is no image in a format that is read here ({known}){other_kind(data)}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        raise ImageRefused("corrupt", f"{place}: its header cannot be read: {error}") from None


def decode_pixels(image: Image.Image, data: bytes, place: str | Path, least_side: int = 1) -> None:
    """Decodes all pixels; raises ImageRefused if the file is cut off, damaged, partly zeros or takes too much memory.

    Of a JPEG, at an eighth of its size, or at more where the longer side is to keep `least_side` pixels: the
    entropy-coded stream is read all the same, in a 64th of the memory for pixels.
    """
    check_data(image, data, place)
    image_format = image.format or ""
    if image_format in {"JPEG", "MPO"}:
        longer = max(image.size)
        image.draft(None, (max(image.width * least_side // longer, 1), max(image.height * least_side // longer, 1)))
    try:
        if image_format == "PNG":
            with image_stream(io.BytesIO(data)) as stream:
                Image.open(stream, formats=("PNG",)).verify()  # checksums, which decoding does not look at
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageRefused(reason, f"{place} cannot be decoded: {error or type(error).__name__}") from None


def check_data(image: Image.Image, data: bytes, place: str | Path) -> None:
    """What can be told of an opened image's file without decoding: its own end, zeros in it, the memory that it takes.

    Raises ImageRefused. Readers report such damage as some other or not at all.
    """
    image_format = image.format or ""
    cut = ImageRefused("truncated", f"{place} ends before the image does ({len(data)} bytes)")
    if image_format == "PNG" and b"IEND" not in data:
        raise cut
    if image_format in {"JPEG", "MPO"}:
        layout = jpeg_layout(data)
        if not layout.has_end:
            raise cut
        if len(layout.scans) > MAX_SCANS:
            message = (
                f"{place} has {len(layout.scans)} scans; at most {MAX_SCANS} are decoded, encoders write about ten"
            )
            raise ImageRefused("too_many_scans", message)
        check_memory(image, len(data), place, has_scans=len(layout.scans) > 1)
        zeros = zeroed_jpeg(data, layout, image.width * image.height)
    else:
        check_memory(image, len(data), place)
        zeros = zeroed_pixels(data, image_format, image.width * image.height)
    if zeros:
        raise _zeroed(place, zeros)


def _zeroed(place: str | Path, zeros: int) -> ImageRefused:
    return ImageRefused(
        "corrupt", f"{place} has {zeros} zero bytes where pixels should be, as a stopped download leaves them"
    )
