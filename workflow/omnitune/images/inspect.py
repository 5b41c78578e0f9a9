"""Look at image files for validation: what is wrong with one gets a name, and nothing that is wrong gets through.

At depth `full` every pixel is decoded and the file hashed. At depth `header` the first bytes tell format, size and
mode; damage behind them is not seen. What becomes of an accepted image is in `omnitune.images.prepare`.
"""

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from omnitune.images.decode import decode_pixels, open_image, own_limits
from omnitune.images.formats import AVIF_SIGNATURES, TIFF_SIGNATURES, plain_webp, starts_like_an_image
from omnitune.images.memory import WEBP, check_estimate, check_memory
from omnitune.images.metadata import turned_size, upright_size
from omnitune.images.notes import extension_notes, mode_notes, notes_on, turn_notes
from omnitune.images.preview import PREVIEW_SIDE, preview_of
from omnitune.images.read import read_bytes, read_start, size_of, verdicts_on
from omnitune.images.verdicts import (
    DECODE_SECONDS,
    MAX_PIXELS,
    MIN_SIDE,
    ImageRefused,
    check_before_decoding,
    check_bytes,
    check_pixels,
    most_bytes,
    too_small,
)
from omnitune.io.workers import cpu_limit

Depth = Literal["header", "full"]

HEADER_READS = (64 << 10, 1 << 20)  # bytes that are read for a header; where neither is enough, the whole file is


@dataclass(frozen=True)
class ImageFacts:
    """What validation records of an image.

    Attributes:
        width, height: in pixels, after the EXIF orientation is applied.
        format, mode: as Pillow names them.
        bytes: size of the file.
        sha256: of the file's bytes, in hexadecimal; None at depth `header`.
        notes: what is unusual but usable.
        preview: the image upright, in RGB and small, where it was asked for and costs little.
    """

    width: int
    height: int
    format: str
    mode: str
    bytes: int
    sha256: str | None
    notes: tuple[str, ...] = ()
    preview: Image.Image | None = field(default=None, compare=False, repr=False)


def inspect_image(
    place: str | Path, max_pixels: int = MAX_PIXELS, depth: Depth = "full", *, preview: bool = False
) -> ImageFacts:
    """Looks at one image file.

    Args:
        place: a path or URL.
        max_pixels: more than this (width x height) is refused before it is decoded.
        depth: `full` decodes all of it; `header` reads the first bytes, and more only where they do not tell the size.
        preview: keep a small picture of it, which depth `header` cannot.

    Raises:
        ImageRefused: missing, unreachable, is_a_folder, not_a_file, permission_denied, empty_file, not_an_image,
            truncated, corrupt, animated, float_pixels, too_many_bytes, too_many_pixels, too_much_memory, too_many_scans
            or too_small. At depth `header`, damage and further frames behind the first bytes are not seen.
        OSError, ValueError: for a failing disk, network or service, which says nothing about the image.
    """
    with own_limits(), cpu_limit(DECODE_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, which are not used
        facts = _inspect_header(place, max_pixels) if depth == "header" else _inspect_all(place, max_pixels, preview)
    if min(facts.width, facts.height) < MIN_SIDE:
        raise too_small(place, facts.width, facts.height)
    return facts


def _inspect_all(place: str | Path, max_pixels: int, preview: bool) -> ImageFacts:
    data = read_bytes(place, most_bytes(max_pixels))
    check_bytes(place, len(data), max_pixels)
    image = open_image(data, place)
    check_before_decoding(image, place, max_pixels)
    notes, size = notes_on(place, image), image.size
    decode_pixels(image, data, place, least_side=PREVIEW_SIDE if preview else 1)
    notes += turn_notes(image)  # only now, as a PNG may have the tag behind its pixels
    # A JPEG was decoded at an eighth of its size, a TIFF turned upright as it was decoded.
    width, height = turned_size(size if image.format in {"JPEG", "MPO"} else image.size, image)
    digest = hashlib.sha256(data).hexdigest()
    small = preview_of(image, size) if preview else None
    return ImageFacts(width, height, image.format or "", image.mode, len(data), digest, tuple(notes), small)


def _inspect_header(place: str | Path, max_pixels: int) -> ImageFacts:
    with verdicts_on(place):
        size = size_of(place)
        check_bytes(place, size, max_pixels)
        data = read_start(place, min(HEADER_READS[0], size))
    webp = plain_webp(data, size)
    if webp:
        check_pixels(place, webp.width, webp.height, max_pixels)
        check_estimate("WEBP", webp.width, webp.height, size + webp.width * webp.height * WEBP, place)
        notes = [*extension_notes(place, "WEBP"), *mode_notes(webp.mode, "")]
        return ImageFacts(webp.width, webp.height, "WEBP", webp.mode, size, None, tuple(notes))
    image = _open_header(data, place, size)
    check_before_decoding(image, place, max_pixels)
    check_memory(image, size, place)
    notes, (width, height) = notes_on(place, image), image.size
    # A TIFF gives its upright size from the start; of a PNG without the tag, Pillow would decode everything to find
    # one.
    if image.format != "TIFF" and (image.format != "PNG" or {"exif", "Raw profile type exif"} & set(image.info)):
        notes += turn_notes(image)
        width, height = upright_size(image)
    return ImageFacts(width, height, image.format or "", image.mode, size, None, tuple(notes))


def _open_header(data: bytes, place: str | Path, size: int) -> Image.Image:
    """Opens the image that starts with `data`; reads more of its file, of `size` bytes, where that is not enough."""
    # A TIFF may describe the image at its end, and the reader of AVIF wants all of it.
    whole = data.startswith(TIFF_SIGNATURES) or data[4:12] in AVIF_SIGNATURES
    for length in [] if whole else [len(data), min(HEADER_READS[1], size)]:
        if length > len(data):
            with verdicts_on(place):
                data = read_start(place, length)
        try:
            return open_image(data, place)
        except ImageRefused:
            if len(data) >= size or not starts_like_an_image(data):
                raise
    return open_image(data if len(data) >= size else read_bytes(place, size), place)
