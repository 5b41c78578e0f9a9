"""Look at image files for validation: every image is decoded in full, and what is wrong with it gets a name.

What becomes of an accepted image is in `omnitune.data.images`.
"""

import errno
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from omnitune.data.sample import Refused

MAX_PIXELS = 178_956_970  # where Pillow itself takes an image for an attack: half a gigabyte as RGB
MIN_SIDE = 16  # one patch: VAE factor 8 x patch size 2
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
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*")
EXIF_ORIENTATION = 0x0112


class ImageRefused(Refused):
    """An image that cannot be trained on."""


@dataclass(frozen=True)
class ImageFacts:
    """What validation records of an image.

    Attributes:
        width, height: in pixels, after the EXIF orientation is applied.
        format, mode: as Pillow names them.
        bytes: size of the file.
        sha256: of the file's bytes, in hexadecimal.
        notes: what is unusual but usable.
    """

    width: int
    height: int
    format: str
    mode: str
    bytes: int
    sha256: str
    notes: tuple[str, ...] = ()


def inspect_image(path: Path, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Reads and fully decodes one image file.

    Args:
        path: the file.
        max_pixels: more than this (width x height) is refused before it is decoded.

    Raises:
        ImageRefused: missing, is_a_folder, permission_denied, empty_file, not_an_image, truncated, corrupt, animated,
            too_many_pixels or too_small.
        OSError: for a failing disk or network, which says nothing about the image.
    """
    data = read_bytes(path)
    if not data:
        raise ImageRefused("empty_file", f"{path} has no content")
    with own_pixel_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, which are not used
        image = _open(data, path)
        _check_before_decoding(image, path, max_pixels)
        notes = [*_extension_notes(path, image), *_profile_notes(image)]
        _decode(image, data, path)
    width, height = upright_size(image)
    if min(width, height) < MIN_SIDE:
        raise ImageRefused("too_small", f"{path} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if orientation(image) != 1:
        notes.append("turned upright by its EXIF orientation")
    digest = hashlib.sha256(data).hexdigest()
    return ImageFacts(width, height, image.format or "", image.mode, len(data), digest, tuple(notes))


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises ImageRefused where there is none to read."""
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        raise ImageRefused("is_a_folder", f"{path} is a folder, not an image") from None
    except PermissionError:
        raise ImageRefused("permission_denied", f"{path} may not be read by this user") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRefused("missing", f"{path} does not exist") from None
    except ValueError as error:  # a NUL byte in the path
        raise ImageRefused("missing", f"{str(path)!r} cannot be a path: {error}") from None
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise ImageRefused("missing", f"{path}: {error.strerror}") from None
        raise


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if orientation(image) in {5, 6, 7, 8} else (width, height)


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


def _open(data: bytes, path: Path) -> Image.Image:
    if _is_short_webp(data):
        raise ImageRefused("truncated", f"{path} ends before the image does ({len(data)} bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if _starts_like_an_image(data):
            raise ImageRefused("corrupt", f"{path} starts like an image but has no readable header") from None
        known = ", ".join(FORMATS)
        raise ImageRefused("not_an_image", f"{path} is no image in a format that is read here ({known})") from None
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        raise ImageRefused("corrupt", f"{path}: its header cannot be read: {error}") from None


def _starts_like_an_image(data: bytes) -> bool:
    return data.startswith(SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _is_short_webp(data: bytes) -> bool:
    """Whether a WebP has fewer bytes than its first chunk says; its reader does not open such a file at all."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8


def _check_before_decoding(image: Image.Image, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageRefused("too_small", f"{path} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if width * height > max_pixels:
        message = f"{path} is {width} x {height} = {width * height} pixels; at most {max_pixels} are decoded"
        raise ImageRefused("too_many_pixels", message)
    # An MPO is a photograph whose further pictures are previews or depth maps: the first one is the picture.
    frames = 1 if image.format == "MPO" else _number_of_frames(image, path)
    if frames > 1:
        raise ImageRefused("animated", f"{path} holds {frames} frames; save the wanted one as an image of its own")


def _number_of_frames(image: Image.Image, path: Path) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting reads the whole file in some formats and may raise anything
        raise ImageRefused("corrupt", f"{path}: its frames cannot be counted: {error}") from None


def _decode(image: Image.Image, data: bytes, path: Path) -> None:
    """Decodes all pixels; raises ImageRefused where the file is cut off or damaged."""
    if _is_cut_off(image, data):
        raise ImageRefused("truncated", f"{path} ends before the image does ({len(data)} bytes)")
    try:
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums, which decoding does not look at
        image.load()
    except Exception as error:  # a format's reader may raise anything on bytes that it did not expect
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageRefused(reason, f"{path} cannot be decoded: {error}") from None


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


def _extension_notes(path: Path, image: Image.Image) -> list[str]:
    suffix = Path(path).suffix.lower()
    content = "JPEG" if image.format == "MPO" else image.format
    if EXTENSIONS.get(suffix) == content:
        return []
    return [f"extension {suffix!r} holds {content}"]


def _profile_notes(image: Image.Image) -> list[str]:
    return ["colour profile other than sRGB, converted to sRGB"] if has_foreign_profile(image) else []
