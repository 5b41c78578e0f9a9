"""Damage that decoders let through: missing ends, and zeros where compressed data should be.

A download that was stopped often has its full length, the rest being zeros. Decoders of JPEG, WebP, AVIF and JPEG 2000
take zeros for content. JPEG is walked marker by marker (ITU-T T.81, annex B), so that the end of a thumbnail is not
taken for the picture's.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from omnitune.images.formats import riff_bytes

MAX_SCANS = 500  # of a JPEG: encoders write about ten, and each takes the time of one more pass over the picture
ZEROS_IN_SCAN = re.compile(rb"\x00{48,}")  # no run of an encoder's bits is that long where zero bits are no even blocks
ZEROS = re.compile(rb"\x00{32,}")
# Arithmetic coders write zeros for large even areas, about a byte for so many pixels at most.
PIXELS_PER_ZERO = 4096
LEAST_ZEROS = 96
BLOCK_PIXELS = 64  # of the component of most samples
SOI, EOI, SOS, DHT = 0xD8, 0xD9, 0xDA, 0xC4
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Scan(NamedTuple):
    """A scan of a JPEG: its entropy-coded bytes data[start:stop], and the zero bits that blocks of an even area take.

    These are of one block of each component; 0 where zero bits mean something else.
    """

    start: int
    stop: int
    even_bits: int


class JpegLayout(NamedTuple):
    """A JPEG's scans, whether its end marker follows them, and how many zeros from the first on are no segment's."""

    scans: list[Scan]
    has_end: bool
    zeros_between: int


def jpeg_layout(data: bytes) -> JpegLayout:
    """Walks the markers of a JPEG up to its own end; what follows that is a trailer."""
    scans: list[Scan] = []
    tables: dict[int, ZeroCode] = {}
    before = zeros = 0
    for marker, start, stop, end in _segments(data):
        if scans:
            zeros += sum(len(run) for run in ZEROS_IN_SCAN.findall(data[before:start]))
        before = end
        if marker == EOI:
            return JpegLayout(scans, True, zeros)
        if marker == DHT:
            tables |= _zero_codes(data[start:stop])
        elif marker == SOS:
            scans.append(Scan(stop, end, _even_bits(data[start:stop], tables)))
    return JpegLayout(scans, False, zeros)


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Marker, start and stop of each segment's content, and where the entropy-coded data behind it ends."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker == EOI:
            yield marker, place, place + 2, place + 2
            return
        elif marker in ALONE or marker == 0:
            place += 2
        else:
            start, stop = place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            place = max(stop, start)
            if marker == SOS:
                found = END_OF_SCAN.search(data, place)
                place = found.start() if found else len(data)
            yield marker, start, min(stop, len(data)), place


class ZeroCode(NamedTuple):
    """The first code of a Huffman table, which is all zeros: its symbol, and its length in bits."""

    symbol: int
    length: int


NO_CODE = ZeroCode(symbol=1, length=0)


def _zero_codes(content: bytes) -> dict[int, ZeroCode]:
    """By class and number of each Huffman table (T.81, B.2.4.2): its code of zeros."""
    codes, place = {}, 0
    while place + 17 < len(content):
        counts = content[place + 1 : place + 17]
        codes[content[place]] = ZeroCode(content[place + 17], 1 + next((k for k in range(16) if counts[k]), 0))
        place += 17 + sum(counts)
    return codes


def _even_bits(header: bytes, tables: dict[int, ZeroCode]) -> int:
    """The bits of `Scan`, of a scan with that header: zeros are a block like the one before, or its end."""
    components = header[0] if header else 0
    if len(header) < 4 + 2 * components:
        return 0
    chosen = header[2 : 1 + 2 * components : 2]
    first, last, approximation = header[1 + 2 * components : 4 + 2 * components]
    if not first and approximation >> 4:  # a bit for each block
        return components
    codes = [] if first else [tables.get(number >> 4, NO_CODE) for number in chosen]
    ends = [tables.get(0x10 | number & 15, NO_CODE) for number in chosen] if last else []
    if any(code.symbol for code in codes) or any(code.symbol & 15 for code in ends):
        return 0
    return sum(code.length for code in [*codes, *ends])


def zeroed_jpeg(data: bytes, layout: JpegLayout, pixels: int) -> int:
    """How many bytes are zeros that no encoder writes: between segments, or in a scan more than all blocks take."""
    zeros = layout.zeros_between
    for scan in layout.scans:
        most = pixels / BLOCK_PIXELS * scan.even_bits / 8
        runs = (len(run) for run in ZEROS_IN_SCAN.findall(data[scan.start : scan.stop]))
        zeros += sum(run for run in runs if run > most)
    return zeros


def webp_pixels_at(data: bytes) -> int:
    """Where a WebP's compressed pixels start (RFC 9649); the length of the data where there are none."""
    place, end = 12, min(len(data), riff_bytes(data))
    while place + 8 <= end:
        if data[place : place + 4] in {b"VP8 ", b"VP8L"}:
            return place + 8
        place += 8 + (size := int.from_bytes(data[place + 4 : place + 8], "little")) + size % 2
    return len(data)


def box_at(data: bytes, name: bytes) -> int:
    """Where the content of the first box of that name starts, of a file of boxes (ISO/IEC 14496-12, 4.2)."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == name:
            return place + 8
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:
            break
        place += size
    return len(data)


def zeroed_pixels(data: bytes, image_format: str, pixels: int) -> int:
    """The longest run of zeros in the compressed pixels of a WebP, AVIF or JPEG 2000; 0 where encoders may write it."""
    if image_format == "WEBP":
        start = webp_pixels_at(data)
    elif image_format == "AVIF":
        start = box_at(data, b"mdat")
    elif image_format == "JPEG2000":
        start = max(0, data.find(b"\xff\x93"))  # start of data, ISO/IEC 15444-1, A.4.3
    else:
        return 0
    lossless = image_format == "WEBP" and data[start - 8 : start - 4] == b"VP8L"  # prefix codes: bits for each pixel
    allowed = pixels // 4 if lossless else LEAST_ZEROS + pixels // PIXELS_PER_ZERO
    longest = max((len(run) for run in ZEROS.findall(data[start:])), default=0)
    return longest if longest > allowed else 0
