"""PNG files chunk by chunk (W3C PNG, section 5): text that is not used is not read, however long it is."""

import io
from collections.abc import Iterator
from typing import IO, NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
LONG = {b"tEXt": 1 << 20, b"zTXt": 1000, b"iTXt": 1000}  # bytes; deflate makes a thousand of one at most
# How chunks start that can hold an orientation, as Pillow looks for it.
ORIENTATIONS = (b"eXIf", b"tEXtRaw profile type exif", b"zTXtRaw profile type exif", b"iTXtXML:com.adobe.xmp")
MAX_PROFILE = 16 << 20  # bytes of a profile or of EXIF once decompressed; those of printers have a few million


class Chunk(NamedTuple):
    """A chunk from its length to its checksum: place and size in bytes, and its type with what follows that."""

    place: int
    size: int
    start: bytes


def chunks(stream: IO[bytes]) -> Iterator[Chunk]:
    """The chunks of a PNG in order, up to its end or that of the stream."""
    place = stream.seek(len(SIGNATURE))
    while len(start := stream.read(40)) >= 8:
        chunk = Chunk(place, 12 + int.from_bytes(start[:4], "big"), start[4:])
        yield chunk
        if chunk.start.startswith(b"IEND"):
            return
        place = stream.seek(place + chunk.size)


def has_late_orientation(stream: IO[bytes]) -> bool:
    """Whether a chunk that can hold an orientation follows the pixels, which is rare."""
    late = False
    for chunk in chunks(stream):
        if late and chunk.start.startswith(ORIENTATIONS):
            return True
        late = late or chunk.start.startswith(b"IDAT")
    return False


def image_stream(stream: IO[bytes]) -> IO[bytes]:
    """The stream, from its start; of a PNG without its text, which Pillow would decompress and refuse beyond 1 MB."""
    stream.seek(0)
    if stream.read(len(SIGNATURE)) != SIGNATURE:
        stream.seek(0)
        return stream
    left_out = [(chunk.place, chunk.size) for chunk in chunks(stream) if _is_text(chunk)]
    stream.seek(0)
    return io.BufferedReader(_Without(stream, left_out)) if left_out else stream


def without_long_text(stream: IO[bytes]) -> bytes:
    """All bytes, from the start; of a PNG without its text where that may be more than other readers take.

    Pillow, for one, takes 1 MB of each, decompressed.
    """
    stream.seek(0)
    is_png = stream.read(len(SIGNATURE)) == SIGNATURE
    long = is_png and any(chunk.size > LONG[chunk.start[:4]] for chunk in chunks(stream) if _is_text(chunk))
    stream.seek(0)
    return (image_stream(stream) if long else stream).read()


def _is_text(chunk: Chunk) -> bool:
    return chunk.start.startswith(TEXT) and not chunk.start.startswith(ORIENTATIONS)


class _Without(io.RawIOBase):
    """A stream without some pieces of it, given as (place, size) in order."""

    def __init__(self, stream: IO[bytes], left_out: list[tuple[int, int]]) -> None:
        self.stream, self.place = stream, 0
        end = stream.seek(0, io.SEEK_END)
        self.pieces: list[tuple[int, int, int]] = []  # place here, place in the stream, size
        here = before = 0
        for place, size in [*left_out, (end, 0)]:
            if place > before:
                self.pieces.append((here, before, place - before))
                here += place - before
            before = place + size
        self.size = here

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        for here, there, size in self.pieces:
            if here <= self.place < here + size:
                self.stream.seek(there + self.place - here)
                content = self.stream.read(min(len(buffer), here + size - self.place))
                buffer[: len(content)] = content
                self.place += len(content)
                return len(content)
        return 0
