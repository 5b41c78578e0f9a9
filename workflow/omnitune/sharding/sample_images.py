"""Images of a sample as they go into a tar, each still what validation saw. Workers import this: nothing heavy."""

import hashlib
from pathlib import Path
from typing import Any

from omnitune.errors import Refused
from omnitune.images.prepare import ImageLimits, PreparedImage, UndecodableImage, check_behind_header, prepare_image
from omnitune.images.read import read_bytes
from omnitune.images.verdicts import DECODE_SECONDS, ImageRefused
from omnitune.io import storage
from omnitune.io.files import sha256_of
from omnitune.io.url_limits import UrlLimits, fetching
from omnitune.io.workers import cpu_limit

LARGE_FILE = 16 << 20  # bytes; a larger image is read in pieces instead of into memory


def named(row: dict[str, Any]) -> str:
    """A sample, and where its row stands."""
    return f"{row['key']} (row {int(row['key'].rpartition('_')[2])} of source {row['source']!r})"


def prepared_images(
    row: dict[str, Any], limits: ImageLimits, urls: UrlLimits, image_root: str | None
) -> list[PreparedImage] | str:
    """The images of one sample, inputs then output, as they go into the tar; a sentence where they cannot."""
    paths, images = [*row["input_images"], row["output_image"]], []
    try:
        with fetching(urls, [image_root]):
            for position, path in enumerate(paths):
                is_output = position == len(paths) - 1
                pixels = limits.max_output_pixels if is_output else limits.input_limit(len(paths) - 1)
                sha256 = row["sha256"][position]
                file = _validated(path, row["bytes"][position], sha256)
                with cpu_limit(DECODE_SECONDS):
                    images.append(_prepare(path, file, pixels, limits, was_decoded=sha256 is not None))
    except _RowError as error:
        return f"{named(row)}: {error}"
    return images


class _RowError(ValueError):
    """What is wrong with an image, in a sentence that names it."""


def _validated(place: str, size: int, sha256: str | None) -> bytes | Path:
    """An image as `prepare_image` takes it, which must be what was validated; without a hash, of the same size."""
    fix = "Validate again: snakemake --cores 2 --forcerun validate_source, or omnitune validate."
    try:
        in_pieces = size > LARGE_FILE and sha256 is not None and not storage.is_url(place)
        file = Path(place) if in_pieces else read_bytes(place)
        found_size, found = _size_and_hash(file)
    except Refused as error:
        raise _RowError(f"{error.message}, but it could be read at validation. {fix}") from None
    except (FileNotFoundError, PermissionError) as error:
        reason = error.strerror or error
        raise _RowError(f"{place}: {reason}, but it could be read at validation. {fix}") from None
    if found_size != size:
        raise _RowError(f"{place} has {found_size} bytes, but {size} at validation. {fix}")
    if sha256 is not None and found != sha256:
        raise _RowError(f"{place} has sha256 {found}, but {sha256} at validation. {fix}")
    return file


def _size_and_hash(file: bytes | Path) -> tuple[int, str]:
    if isinstance(file, bytes):
        return len(file), hashlib.sha256(file).hexdigest()
    return file.stat().st_size, sha256_of(file)


def _prepare(place: str, file: bytes | Path, max_pixels: int, limits: ImageLimits, was_decoded: bool) -> PreparedImage:
    """An image within the limits; one that validation has not decoded is looked at here as closely."""
    fix = "Take the row out, or validate with data.validation_depth: full, which rejects such images."
    try:
        if not was_decoded:
            assert isinstance(file, bytes)
            check_behind_header(file, place, decode=False)
        prepared = prepare_image(file, max_pixels, limits.max_side_length, limits.image_format, limits.image_quality)
        if not was_decoded and prepared.kept:
            check_behind_header(prepared.data, place, decode=True)
    except UndecodableImage as error:
        raise _RowError(f"{place} {error}. {fix}") from None
    except ImageRefused as error:
        raise _RowError(f"{error.message}. {fix}") from None
    except ValueError as error:
        raise _RowError(f"{place}: {error}. Take the row out, or raise the limits in `data`.") from None
    return prepared
