"""Tensors that are read when they are asked for, so that a conversion holds one at a time, and files of them."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from omnitune.io.weights import read_header
from omnitune.models.files import is_finite

# As .safetensors names them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # that weights are saved in


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that lies in a file, or is computed from such ones.

    Attributes:
        shape, dtype: of what `load` gives.
        load: reads or computes it, anew each time.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "LazyTensor":
        """One that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """The same in another precision."""
        return self if dtype == self.dtype else LazyTensor(self.shape, dtype, lambda: self.load().to(dtype))

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return self.numel * self.dtype.itemsize


State = dict[str, LazyTensor]


def open_safetensors(path: Path) -> State:
    """The tensors of a .safetensors file; ValueError for one that is damaged, or that has numbers of unknown kinds."""
    shapes, _, dtypes = read_header(path)
    unknown = sorted(set(dtypes.values()) - DTYPES.keys())
    if unknown:
        raise ValueError(f"{path}: holds numbers of {', '.join(unknown)}, which are not known here.")
    file = safe_open(path, framework="pt")
    return {
        name: LazyTensor(tuple(shape), DTYPES[dtypes[name]], partial(file.get_tensor, name))
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Digest:
    """What tells a tensor from another: shape, type, and a checksum of its bytes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    checksum: int

    @classmethod
    def of(cls, lazy: LazyTensor) -> "Digest":
        """That of a tensor, which is read or computed for it."""
        return cls(lazy.shape, lazy.dtype, zlib.crc32(_bytes(lazy)))


def write_safetensors(
    path: Path, state: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Digest]:
    """Writes a .safetensors file tensor by tensor; the library's own writer wants all of them in memory.

    Args:
        path: of the file.
        state: what goes into it; larger elements first, then by name, so that equal tensors give equal bytes.
        metadata: texts of its header.

    Returns:
        what was to be written, by name.

    Raises:
        ValueError: for a tensor that is not finite, or no longer where its numbers are too large for its type.
    """
    names = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    place = 0
    for name in names:
        tensor = state[name]
        end = place + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            content = _bytes(state[name], name)
            file.write(content)
            digests[name] = Digest(state[name].shape, state[name].dtype, zlib.crc32(content))
    return digests


def _bytes(lazy: LazyTensor, written_as: str | None = None) -> memoryview:
    tensor = lazy.load()
    if written_as and not is_finite(tensor):
        kind = NAMES[lazy.dtype]
        advice = "; its numbers may be too large for this type: take bf16 or fp32" if kind == "F16" else ""
        raise ValueError(f"{written_as}: holds NaN or infinity as {kind}{advice}. Nothing was written.")
    assert (tuple(tensor.shape), tensor.dtype) == (lazy.shape, lazy.dtype)
    plain: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(plain)
