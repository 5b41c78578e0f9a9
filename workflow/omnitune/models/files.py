"""Weight files of strangers: their headers are read before a library takes them, and what they hold is finite."""

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

HEADER_LIMIT = 100_000_000  # bytes, as in the library
LFS_POINTER = b"version https://git-lfs"


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shapes of a .safetensors file's tensors by name, and its metadata; reads no tensor.

    Raises:
        ValueError: for a file that is missing, damaged or no .safetensors, with the reason.
    """
    try:
        with Path(path).open("rb") as start:
            problem = _first_bytes_problem(start.read(64), path.stat().st_size)
        if problem is None:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_slice(name).get_shape() for name in names}, file.metadata() or {}
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
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "it is a file of torch.save, which is not taken here; save it as .safetensors"
    if size < 8:
        return "it is cut off"
    length = struct.unpack("<Q", start[:8])[0]
    if length > HEADER_LIMIT or start[8:9] not in (b"{", b""):
        return "it is no such file"
    return "it is cut off" if size < 8 + length else None


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
