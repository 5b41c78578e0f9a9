"""Headers of strangers' .safetensors files, read before a library takes the tensors. Imports nothing heavy."""

import struct
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

HEADER_LIMIT = 100_000_000  # bytes, as in the library
LFS_POINTER = b"version https://git-lfs"


class Header(NamedTuple):
    """What a .safetensors file says of itself: shapes of its tensors by name, its metadata, and their types (`F32`)."""

    shapes: dict[str, list[int]]
    metadata: dict[str, str]
    dtypes: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a .safetensors file; reads no tensor.

    Raises:
        ValueError: for a file that is missing, damaged or no .safetensors, with the reason.
    """
    try:
        with Path(path).open("rb") as start:
            problem = _first_bytes_problem(start.read(64), path.stat().st_size)
        if problem is None:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
                shapes = {name: found.get_shape() for name, found in slices.items()}
                return Header(shapes, file.metadata() or {}, {name: s.get_dtype() for name, s in slices.items()})
    except OSError as error:
        problem = error.strerror or str(error)
    except SafetensorError as error:
        text = str(error).splitlines()[0][:200]
        cut = "not fully covered" in text
        problem = "it is cut off, or longer than its tensors" if cut else f"its header is damaged ({text})"
    raise ValueError(f"{path}: cannot be read as a .safetensors file: {problem}. Fetch or write it again.")


def _first_bytes_problem(start: bytes, size: int) -> str | None:
    if size == 0:
        return "it is empty"
    if start.startswith(LFS_POINTER):
        return "it is a pointer of git-lfs, not the file itself (`git lfs pull` fetches it)"
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":  # the length of a header may begin so as well
        return "it is a file of torch.save, which is not taken here; save it as .safetensors"
    if size < 8:
        return "it is cut off"
    length = struct.unpack("<Q", start[:8])[0]
    if length > HEADER_LIMIT or start[8:9] not in (b"{", b""):
        return "it is no such file"
    return "it is cut off" if size < 8 + length else None
