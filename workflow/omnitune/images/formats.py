"""Which files are images at all: the formats that are opened, how they start, and the header of a WebP."""

import re
from typing import NamedTuple

# What is opened at all. Pillow knows more, but some of it runs other programs (EPS) or is no photograph (fonts, video).
# A JPEG that holds several pictures is opened as JPEG and then calls itself MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*")
AVIF_SIGNATURES = (b"ftypavif", b"ftypavis", b"ftypmif1")  # after the first four bytes
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"\x00\x00\x00\x0cjP  ", *TIFF_SIGNATURES)


# What is often found in place of one, by a pattern of its first bytes: its name, and what to do.
OTHERS = (
    (re.compile(rb"....ftyp(heic|heix|hevc|heim|msf1)", re.DOTALL), "HEIC", "convert it: heif-convert a.heic a.jpg"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page", "look at where it was downloaded from"),
    (re.compile(rb"\s*(<\?xml.{0,1000})?<svg", re.DOTALL), "SVG", "draw it: rsvg-convert a.svg > a.png"),
    (re.compile(rb"version https://git-lfs"), "a pointer of git-lfs", "fetch the file: git lfs pull"),
    (re.compile(rb"8BPS"), "a Photoshop document", "export it as PNG"),
    (re.compile(rb"%PDF|%!PS"), "PDF or PostScript", "export it as PNG"),
    (re.compile(rb"\0\0\x01\0"), "an icon", "convert it to PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL", "convert it: djxl a.jxl a.png"),
)


def other_kind(data: bytes) -> str:
    """What a file that is no image of these formats seems to be, and what to do, as part of a sentence; or nothing."""
    return next((f"; it is {name}: {fix}" for start, name, fix in OTHERS if start.match(data)), "")


def starts_like_an_image(data: bytes) -> bool:
    """Whether a file that starts so means to be an image of one of the formats."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith(SIGNATURES) or data[4:12] in AVIF_SIGNATURES


def riff_bytes(data: bytes) -> int:
    """How long a WebP says that it is."""
    return int.from_bytes(data[4:8], "little") + 8


class WebpHeader(NamedTuple):
    """What the header of a WebP says: sides in pixels, and Pillow's name of the mode."""

    width: int
    height: int
    mode: str


def plain_webp(data: bytes, size: int) -> WebpHeader | None:
    """Header of a WebP that has neither EXIF nor profile nor frames; Pillow opens no WebP that it has not whole.

    Layout: RIFF container of RFC 9649; VP8 frame header of RFC 6386, section 9.1; VP8L header of RFC 9649, section 3.4.
    None for anything else, and where the file of `size` bytes is shorter than it says.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30 or riff_bytes(data) > size:
        return None
    kind = data[12:16]
    if kind == b"VP8X" and not data[20] & ~0x10:  # the flag of an alpha channel is the only one that is set
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        return WebpHeader(width, height, "RGBA" if data[20] else "RGB")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (26, 28))
        return WebpHeader(width, height, "RGB")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return WebpHeader((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "RGBA" if bits >> 28 & 1 else "RGB")
    return None
