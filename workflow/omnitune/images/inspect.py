"""Look at image files for validation: what is wrong with one gets a name, and nothing that is wrong gets through.

At depth `full` every pixel is decoded and the file hashed. At depth `header` the first bytes tell format, size and mode;
damage behind them is not seen. What becomes of an accepted image is in `omnitune.images.prepare`.
"""

import errno
import hashlib
import io
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from omnitune.errors import Refused
from omnitune.io import storage

Depth = Literal["header", "full"]

MAX_PIXELS = 178_956_970  # where Pillow itself takes an image for an attack: half a gigabyte as RGB
MIN_SIDE = 16  # one patch: VAE factor 8 x patch size 2
# No image needs more bytes for a pixel (RGBA of 16 bits), beside its metadata: a longer file is not read.
BYTES_PER_PIXEL, METADATA_BYTES = 8, 64 << 20
HEADER_READS = (64 << 10, 1 << 20)  # bytes that are read for a header; where neither is enough, the whole file is
# What is opened at all. Pillow knows more, but some of it runs other programs (EPS) or is no photograph (fonts, video).
# A JPEG that holds several pictures is opened as JPEG and then calls itself MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
EXTENSIONS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".jp2": "JPEG2000",
}
TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*")
AVIF_SIGNATURES = (b"ftypavif", b"ftypavis", b"ftypmif1")  # after the first four bytes
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"\x00\x00\x00\x0cjP  ", *TIFF_SIGNATURES)
EXIF_ORIENTATION = 0x0112
SIXTEEN_BITS = re.compile(r";16[BLNS]")  # in Pillow's names of how pixels are stored
USUAL_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"})


class ImageRefused(Refused):
    """An image that cannot be trained on."""


@dataclass(frozen=True)
class ImageFacts:
    """What validation records of an image.

    Attributes:
        width, height: in pixels, after the EXIF orientation is applied.
        format, mode: as Pillow names them.
        bytes: size of the file.
        sha256: of the file's bytes, in hexadecimal; None at depth `header`.
        notes: what is unusual but usable.
    """

    width: int
    height: int
    format: str
    mode: str
    bytes: int
    sha256: str | None
    notes: tuple[str, ...] = ()


def inspect_image(place: str | Path, max_pixels: int = MAX_PIXELS, depth: Depth = "full") -> ImageFacts:
    """Looks at one image file.

    Args:
        place: a path or URL.
        max_pixels: more than this (width x height) is refused before it is decoded.
        depth: `full` decodes all of it; `header` reads the first bytes, and more only where they do not tell the size.

    Raises:
        ImageRefused: missing, unreachable, is_a_folder, not_a_file, permission_denied, empty_file, not_an_image, truncated,
            corrupt, animated, too_many_bytes, too_many_pixels or too_small. At depth `header`, damage and further frames
            behind the first bytes are not seen.
        OSError, ValueError: for a failing disk, network or service, which says nothing about the image.
    """
    with own_pixel_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, which are not used
        facts = (_inspect_header if depth == "header" else _inspect_all)(place, max_pixels)
    if min(facts.width, facts.height) < MIN_SIDE:
        raise _too_small(place, facts.width, facts.height)
    return facts


def _inspect_all(place: str | Path, max_pixels: int) -> ImageFacts:
    data = read_bytes(place, _most_bytes(max_pixels))
    _check_bytes(place, len(data), max_pixels)
    image = _open(data, place)
    _check_before_decoding(image, place, max_pixels)
    notes, size = _notes(place, image), image.size
    # At an eighth of the size, the whole entropy-coded stream is read all the same, in a 64th of the memory for pixels; of
    # a progressive JPEG, the decoder keeps the coefficients as well, 2 bytes for each.
    reduced = image.format in {"JPEG", "MPO"} and image.draft(None, (1, 1)) is not None
    _decode(image, data, place)
    notes += _turn_notes(image)  # only now, as a PNG may have the tag behind its pixels
    width, height = _upright(size if reduced else image.size, image)  # a TIFF turned upright as it was decoded
    digest = hashlib.sha256(data).hexdigest()
    return ImageFacts(width, height, image.format or "", image.mode, len(data), digest, tuple(notes))


def _inspect_header(place: str | Path, max_pixels: int) -> ImageFacts:
    with _verdicts_on(place):
        size = _size_of(place)
        _check_bytes(place, size, max_pixels)
        data = _read_start(place, min(HEADER_READS[0], size))
    webp = _plain_webp(data, size)
    if webp:
        _check_pixels(place, webp.width, webp.height, max_pixels)
        notes = [*_extension_notes(place, "WEBP"), *_mode_notes(webp.mode, "")]
        return ImageFacts(webp.width, webp.height, "WEBP", webp.mode, size, None, tuple(notes))
    image = _open_header(data, place, size)
    _check_before_decoding(image, place, max_pixels)
    notes, (width, height) = _notes(place, image), image.size
    # A TIFF gives its upright size from the start; of a PNG without the tag, Pillow would decode everything to find one.
    if image.format != "TIFF" and (image.format != "PNG" or {"exif", "Raw profile type exif"} & set(image.info)):
        notes += _turn_notes(image)
        width, height = upright_size(image)
    return ImageFacts(width, height, image.format or "", image.mode, size, None, tuple(notes))


def _open_header(data: bytes, place: str | Path, size: int) -> Image.Image:
    """Opens the image that starts with `data`; reads more of its file, of `size` bytes, where that is not enough."""
    # A TIFF may describe the image at its end, and the reader of AVIF wants all of it.
    whole = data.startswith(TIFF_SIGNATURES) or data[4:12] in AVIF_SIGNATURES
    for length in [] if whole else [len(data), min(HEADER_READS[1], size)]:
        if length > len(data):
            with _verdicts_on(place):
                data = _read_start(place, length)
        try:
            return _open(data, place)
        except ImageRefused:
            if len(data) >= size or not _starts_like_an_image(data):
                raise
    return _open(data if len(data) >= size else read_bytes(place, size), place)


class _Webp(NamedTuple):
    """What the header of a WebP says: sides in pixels, and Pillow's name of the mode."""

    width: int
    height: int
    mode: str


def _plain_webp(data: bytes, size: int) -> _Webp | None:
    """Header of a WebP that has neither EXIF nor profile nor frames; Pillow opens no WebP that it has not whole.

    Layout: RIFF container of RFC 9649; VP8 frame header of RFC 6386, section 9.1; VP8L header of RFC 9649, section 3.4.
    None for anything else, and where the file of `size` bytes is shorter than it says.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30 or _riff_bytes(data) > size:
        return None
    kind = data[12:16]
    if kind == b"VP8X" and not data[20] & ~0x10:  # the flag of an alpha channel is the only one that is set
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        return _Webp(width, height, "RGBA" if data[20] else "RGB")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (26, 28))
        return _Webp(width, height, "RGB")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return _Webp((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "RGBA" if bits >> 28 & 1 else "RGB")
    return None


def read_bytes(place: str | Path, limit: int | None = None) -> bytes:
    """The content of a file or URL, without what lies beyond limit + 1 bytes; raises as `inspect_image` does."""
    with _verdicts_on(place):
        if storage.is_url(place):
            size = 0 if limit is None else min(storage.size_of(place), limit + 1)
            return storage.read_range(str(place), 0, size) if size else storage.read_bytes(place)
        _size_of(place)
        with Path(place).open("rb") as file:
            return file.read(-1 if limit is None else limit + 1)


def _read_start(place: str | Path, length: int) -> bytes:
    if storage.is_url(place):
        return storage.read_range(str(place), 0, length)
    with Path(place).open("rb") as file:
        return file.read(length)


def _size_of(place: str | Path) -> int:
    """Size in bytes; refuses what is no file, such as a pipe, which would never end."""
    if storage.is_url(place):
        # A service tells no bytes of what is only the start of other names, too; that cannot be read.
        return storage.size_of(place) or len(storage.read_bytes(place))
    facts = Path(place).stat()
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(facts.st_mode):
        raise ImageRefused("not_a_file", f"{place} is a device or pipe, not a file")
    return facts.st_size


@contextmanager
def _verdicts_on(place: str | Path) -> Iterator[None]:
    """Turns the errors that speak of the place itself into verdicts; a failing disk or service speaks of no image."""
    try:
        yield
    except IsADirectoryError:
        raise ImageRefused("is_a_folder", f"{place} is a folder, not an image") from None
    except PermissionError:
        raise ImageRefused("permission_denied", f"{place} may not be read by this user") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRefused("missing", f"{place} does not exist") from None
    except Refused:
        raise
    except ValueError as error:  # a NUL byte in the path
        if storage.is_url(place):
            raise
        raise ImageRefused("missing", f"{str(place)!r} cannot be a path: {error}") from None
    except ConnectionError as error:
        raise ImageRefused("unreachable", str(error)) from None
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise ImageRefused("missing", f"{place}: {error.strerror}") from None
        raise


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF orientation is applied."""
    return _upright(image.size, image)


def _upright(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    return (size[1], size[0]) if orientation(image) in {5, 6, 7, 8} else size


def has_foreign_profile(image: Image.Image) -> bool:
    """Whether the image carries a colour profile that is not sRGB."""
    profile = image.info.get("icc_profile")
    if not profile:
        return False
    # The description is ASCII (version 2) or UTF-16 (version 4).
    return b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Turns Pillow's fixed limit off, which only warns at half of it, because the caller's is checked instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open(data: bytes, place: str | Path) -> Image.Image:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < _riff_bytes(data):
        # The reader of this format does not open such a file at all.
        raise ImageRefused("truncated", f"{place} ends before the image does ({len(data)} bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if _starts_like_an_image(data):
            raise ImageRefused("corrupt", f"{place} starts like an image but has no readable header") from None
        known = ", ".join(FORMATS)
        raise ImageRefused("not_an_image", f"{place} is no image in a format that is read here ({known})") from None
    except MemoryError:
        raise
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        raise ImageRefused("corrupt", f"{place}: its header cannot be read: {error}") from None


def _starts_like_an_image(data: bytes) -> bool:
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith(SIGNATURES) or data[4:12] in AVIF_SIGNATURES


def _riff_bytes(data: bytes) -> int:
    """How long a WebP says that it is."""
    return int.from_bytes(data[4:8], "little") + 8


def _most_bytes(max_pixels: int) -> int:
    return max_pixels * BYTES_PER_PIXEL + METADATA_BYTES


def _check_bytes(place: str | Path, size: int, max_pixels: int) -> None:
    if not size:
        raise ImageRefused("empty_file", f"{place} has no content")
    if size > _most_bytes(max_pixels):
        message = f"{place} has more than {_most_bytes(max_pixels)} bytes, which is more than {max_pixels} pixels need"
        raise ImageRefused("too_many_bytes", message)


def _check_pixels(place: str | Path, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise _too_small(place, width, height)
    if width * height > max_pixels:
        message = f"{place} is {width} x {height} = {width * height} pixels; at most {max_pixels} are decoded"
        raise ImageRefused("too_many_pixels", message)


def _too_small(place: str | Path, width: int, height: int) -> ImageRefused:
    return ImageRefused("too_small", f"{place} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")


def _check_before_decoding(image: Image.Image, place: str | Path, max_pixels: int) -> None:
    _check_pixels(place, *image.size, max_pixels)
    # An MPO is a photograph whose further pictures are previews or depth maps: the first one is the picture.
    frames = 1 if image.format == "MPO" else _number_of_frames(image, place)
    if frames > 1:
        raise ImageRefused("animated", f"{place} holds {frames} frames; save the wanted one as an image of its own")


def _number_of_frames(image: Image.Image, place: str | Path) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting reads the whole file in some formats and may raise anything
        raise ImageRefused("corrupt", f"{place}: its frames cannot be counted: {error}") from None


def _decode(image: Image.Image, data: bytes, place: str | Path) -> None:
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


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or none that can be read."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF is common and says nothing about the pixels; every viewer shows them as stored
        return 1
    return value if value in range(1, 9) else 1


def _notes(place: str | Path, image: Image.Image) -> list[str]:
    """What is unusual but usable of an image that is open and not yet decoded."""
    notes = _extension_notes(place, "JPEG" if image.format == "MPO" else image.format or "")
    notes += _mode_notes(image.mode, str([tile[3] for tile in getattr(image, "tile", ())]))
    if has_foreign_profile(image):
        notes.append("colour profile other than sRGB, converted to sRGB")
    return notes


def _extension_notes(place: str | Path, content: str) -> list[str]:
    suffix = Path(str(place).partition("?")[0] if storage.is_url(place) else place).suffix.lower()
    return [] if EXTENSIONS.get(suffix) == content else [f"extension {suffix!r} holds {content}"]


def _turn_notes(image: Image.Image) -> list[str]:
    return ["turned upright by its EXIF orientation"] if orientation(image) != 1 else []


def _mode_notes(mode: str, stored: str) -> list[str]:
    """Notes on pixels that are not 8-bit RGB or grey; `stored` is Pillow's description of how they lie in the file."""
    if SIXTEEN_BITS.search(stored) or mode.startswith("I"):
        return ["more than 8 bits per channel, reduced to 8"]
    if mode in {"LA", "PA", "RGBA"}:
        return ["transparency, laid over white"]
    return [] if mode in USUAL_MODES else [f"colour mode {mode}, converted to RGB"]
