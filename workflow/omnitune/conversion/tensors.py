"""Tensors that are read when they are asked for, so that a conversion holds one at a time, and files of them."""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from omnitune.io.model_files.weights import read_header
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
        shape, dtype: of the whole.
        pieces: reads or computes it, anew each time, in parts of any shape whose numbers follow each other; each holds
            until the next is asked for.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[torch.Tensor]]

    @classmethod
    def computed(cls, shape: tuple[int, ...], dtype: torch.dtype, load: Callable[[], torch.Tensor]) -> "LazyTensor":
        """One that `load` makes in one piece."""
        return cls(shape, dtype, lambda: iter([load()]))

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "LazyTensor":
        """One that is there already."""
        return cls.computed(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """The same in another precision."""
        if dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: (piece.to(dtype) for piece in self.pieces()))

    def load(self) -> torch.Tensor:
        """All of it."""
        whole: torch.Tensor | None = None
        place = 0
        for piece in self.pieces():
            if piece.numel() == self.numel:
                return piece.reshape(self.shape)
            whole = torch.empty(self.numel, dtype=self.dtype) if whole is None else whole
            whole[place : place + piece.numel()] = piece.reshape(-1)
            place += piece.numel()
        assert place == self.numel
        return torch.empty(self.shape, dtype=self.dtype) if whole is None else whole.reshape(self.shape)

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
        name: LazyTensor.computed(tuple(shape), DTYPES[dtypes[name]], partial(file.get_tensor, name))
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
        checksum = 0
        for content in _contents(lazy):
            checksum = zlib.crc32(content, checksum)
        return cls(lazy.shape, lazy.dtype, checksum)


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
            checksum = 0
            for content in _contents(state[name], name):
                file.write(content)
                checksum = zlib.crc32(content, checksum)
            digests[name] = Digest(state[name].shape, state[name].dtype, checksum)
    return digests


def _contents(lazy: LazyTensor, written_as: str | None = None) -> Iterator[memoryview]:
    """The bytes of a tensor, piece by piece; ValueError for one that is to be written and is not finite."""
    count = 0
    for tensor in lazy.pieces():
        if written_as and not is_finite(tensor):
            kind = NAMES[lazy.dtype]
            advice = "; its numbers may be too large for this type: take bf16 or fp32" if kind == "F16" else ""
            raise ValueError(f"{written_as}: holds NaN or infinity as {kind}{advice}. Nothing was written.")
        assert tensor.dtype == lazy.dtype
        count += tensor.numel()
        plain: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(plain)
    assert count == lazy.numel
