"""Weight files of strangers: their headers are read before a library takes them, and what they hold is finite."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
HEADER_LIMIT = 100_000_000  # bytes, as in the library
LFS_POINTER = b"version https://git-lfs"


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shapes of a .safetensors file's tensors by name, and its metadata; reads no tensor.

    Raises:
        ValueError: for a file that is missing, damaged or no .safetensors, with the reason.
    """
    try:
        with Path(path).open("rb") as file:
            size = path.stat().st_size
            start = file.read(64)
            problem = _first_bytes_problem(start, size)
            if problem is None:
                length = struct.unpack("<Q", start[:8])[0]
                file.seek(8)
                return _checked(json.loads(file.read(length)), size - 8 - length)
    except OSError as error:
        problem = error.strerror or str(error)
    except RecursionError:
        problem = "its header is nested too deeply"
    except ValueError as error:  # of JSON and of its text, too
        problem = f"its header is damaged ({str(error).splitlines()[0][:200]})"
    raise ValueError(f"{path}: cannot be read as a .safetensors file: {problem}. Fetch or write it again.")


def _first_bytes_problem(start: bytes, size: int) -> str | None:
    if size == 0:
        return "it is empty"
    if start.startswith(LFS_POINTER):
        return "it is a pointer of git-lfs, not the file itself (`git lfs pull` fetches it)"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "it is a file of torch.save, which is not taken here; save it as .safetensors"
    if size < 8:
        return "it is cut off"
    length = struct.unpack("<Q", start[:8])[0]
    if length > HEADER_LIMIT or start[8:9] not in (b"{", b""):
        return "it is no such file"
    return "it is cut off" if size < 8 + length else None


def _checked(header: Any, size: int) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shapes and metadata of a header that stands before so many bytes of tensors."""
    if not isinstance(header, dict):
        raise ValueError("is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ holds more than texts")
    shapes, end = {}, 0
    for name, entry in header.items():
        shapes[name], last = _checked_entry(name, entry)
        end = max(end, last)
    if end != size:
        state = "is cut off" if end > size else "is longer than its tensors"
        raise ValueError(f"the file {state}: {size} bytes where {end} are due")
    return shapes, metadata


def _checked_entry(name: str, entry: Any) -> tuple[list[int], int]:
    """Shape of a tensor, and where it ends."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            if all(isinstance(side, int) and side >= 0 for side in shape) and 0 <= first <= last:
                width = DTYPE_BYTES.get(dtype)
                if width is None or last - first == width * math.prod(shape):
                    return shape, last
    raise ValueError(f"{name[:100]!r} is no tensor that fits its bytes")


def require_weights(folder: Path | str) -> None:
    """Raises ValueError for a .safetensors file of a folder that is damaged; see read_header."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        read_header(path)


def require_finite(tensors: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Raises ValueError for a tensor with a NaN or an infinity in it."""
    for name, tensor in tensors.items():
        # the sum of a tensor of any size takes no memory, unlike isfinite; it overflows in no finite weights
        if tensor.is_floating_point() and not torch.isfinite(tensor.detach().sum(dtype=torch.float64)):
            raise ValueError(f"{where}: {name} holds NaN or infinity: these weights are broken. Take others.")
