"""torch's distributed checkpoints, read so that nothing in their files can run code."""

import errno
import io
import itertools
import math
import pickle
import pickletools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from omnitune.errors import reason_of
from omnitune.io.files import open_regular
from omnitune.io.model_files.weights import require_stored
from omnitune.paths import METADATA_FILE, path_problem

METADATA = "torch.distributed.checkpoint.metadata"
# What `.metadata` is made of: plain records, sizes and names. None of them does anything when it is made.
KNOWN = {
    *(
        (METADATA, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}
MAX_METADATA = 64 << 20  # bytes; a part of a tensor takes about 140
# What pickle writes such records with. Others take more memory than they have bytes, or are for other things.
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "STACK_GLOBAL",
    "NEWOBJ", "REDUCE", "BUILD", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip
BLOCK = 8 << 20  # bytes that are read at once: memory that is used again costs less than new one
PATHS = {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}  # where the checkpoint was written


class _Unpickler(pickle.Unpickler):
    """Knows the classes of `.metadata` alone."""

    def find_class(self, module: str, name: str) -> Any:
        if module in {"pathlib", "pathlib._local"} and name in PATHS:
            return PurePosixPath  # a name that touches no disk
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """Reads `.metadata` by the classes that it knows, once, and files of the folder alone."""

    _known: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As the base class does; raises ValueError for anything else than the metadata of a checkpoint."""
        metadata = self._known = self._known or read_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """Loads what is no tensor, such as an optimizer's numbers, without running code or unpacking anything."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As the base class does, of plain values and tensors alone; raises ValueError for anything else."""
        plain = io.BytesIO()
        require_stored(value, read_item.storage_index.fqn)
        try:
            torch.save(torch.load(value, map_location="cpu", weights_only=True), plain)
        except pickle.UnpicklingError:
            raise ValueError(f"{read_item.storage_index.fqn} is neither a plain value nor a tensor") from None
        plain.seek(0)
        super().load_bytes(read_item, plain)


def read_metadata(folder: Path) -> Metadata:
    """What a distributed checkpoint says that it holds.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is damaged, asks for other classes than it needs, names files that are missing or outside
            of the folder, parts outside of these, or more tensors than they can hold.
    """
    path = folder / METADATA_FILE
    with open_regular(path) as file:
        content = file.read(MAX_METADATA + 1)
    try:
        _check_opcodes(content)
        metadata = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # on damaged bytes a pickle may raise anything
        raise ValueError(f"{path}: is not the metadata of a distributed checkpoint: {reason_of(error)}") from None
    try:
        _require_sound(folder, metadata)
    except (AttributeError, TypeError) as error:  # records of other fields than they should have
        raise ValueError(f"{path}: is not the metadata of a distributed checkpoint: {reason_of(error)}") from None
    return metadata


def _check_opcodes(content: bytes) -> None:
    """Refuses, before it is done, what takes memory by a number in the file alone, such as a place of a giant index."""
    if len(content) > MAX_METADATA:
        raise pickle.UnpicklingError(f"it has more than {MAX_METADATA} bytes")
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        place = int(argument or 0) if opcode.name in {"BINPUT", "LONG_BINPUT"} else 0
        if opcode.name not in OPCODES or place > count:
            raise pickle.UnpicklingError(f"it does what no checkpoint needs ({opcode.name} {str(argument or '')[:20]})")


def _require_sound(folder: Path, metadata: Metadata) -> None:
    path, names = folder / METADATA_FILE, {info.relative_path for info in metadata.storage_data.values()}
    for name in sorted(names):
        if Path(name).name != name or path_problem(name):
            raise ValueError(f"{path}: names {name!r}, which is no file of this folder.")
        if not (folder / name).is_file():
            problem = "is no regular file" if (folder / name).exists() else f"is missing, which {path} names"
            raise ValueError(f"{folder / name}: {problem}.")
    sizes = {name: (folder / name).stat().st_size for name in names}
    for info in metadata.storage_data.values():
        if not _is_inside(info.offset, info.length, sizes[info.relative_path]):
            raise ValueError(
                f"{path}: names a part of {folder / info.relative_path} that is not inside of its "
                f"{sizes[info.relative_path]} bytes: one of them is damaged."
            )
    entries = metadata.state_dict_metadata
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    held = sum(sizes.values())
    # math.prod: the library's own numel goes round at 2^64, and sides below 0 would be taken off the others
    claimed = sum(
        math.prod(max(side, 0) for side in entry.size) * entry.properties.dtype.itemsize for entry in tensors.values()
    )
    if claimed > held:
        raise ValueError(f"{path}: names tensors of {claimed} bytes, but the files beside it have {held}.")
    for name in entries:
        if not isinstance(name, str):
            raise ValueError(f"{path}: names a tensor {name!r}, which is no text.")
        if name in tensors and not _is_covered(tensors[name]):
            raise ValueError(f"{path}: the parts of {name!r} do not make up the whole tensor.")


def _is_inside(offset: Any, length: Any, size: int) -> bool:
    """Whether these are numbers of bytes of a file: others would be read from elsewhere, or not at all."""
    return type(offset) is type(length) is int and offset >= 0 and length >= 0 and offset + length <= size


def _is_covered(entry: TensorStorageMetadata) -> bool:
    """Whether each number of a tensor stands in one part: others would be what the memory held before."""
    parts = sorted((tuple(part.offsets), tuple(part.sizes)) for part in entry.chunks if math.prod(part.sizes))
    shape = tuple(entry.size)
    inside = min(shape, default=0) >= 0 and all(
        len(start) == len(sides) == len(shape)
        and all(first >= 0 and first + side <= most for first, side, most in zip(start, sides, shape, strict=True))
        for start, sides in parts
    )
    if not inside or sum(math.prod(sides) for _, sides in parts) != math.prod(shape):
        return False
    by_rows = all(sides[1:] == shape[1:] for _, sides in parts)  # as FSDP cuts: only neighbours can overlap
    pairs = itertools.pairwise(parts) if by_rows else itertools.combinations(parts, 2)
    return not any(
        all(a < b + long and b < a + wide for a, wide, b, long in zip(*first, *second, strict=True))
        for first, second in pairs
    )


def load_into(state: dict[str, Any], folder: Path) -> None:
    """Loads a distributed checkpoint in place, at the same or another number of processes; every process calls it.

    Raises:
        ValueError: where a file is missing, damaged or not what a checkpoint holds.
    """
    with _faults(folder):
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())


class TensorFolder:
    """The tensors of a distributed checkpoint that holds nothing else, read one by one without a process group.

    Args:
        folder: its folder.

    Raises:
        ValueError: as `load_into`, and where something in it is no tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _faults(folder):
            self._reader = _Reader(folder)
            metadata = self._reader.read_metadata()
        entries, self._places = metadata.state_dict_metadata, metadata.storage_data
        objects = sorted(name for name, entry in entries.items() if not isinstance(entry, TensorStorageMetadata))
        if objects:
            more = f" and {len(objects) - 10} more" if len(objects) > 10 else ""
            raise ValueError(
                f"{folder}: {', '.join(objects[:10])}{more} are objects, no tensors: this is not a model state (an "
                "optimizer's, perhaps)."
            )
        self.tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def pieces(self, name: str) -> Iterator[Tensor]:
        """One of them, on the CPU, in flat parts whose numbers follow each other; each holds until the next is taken.

        Raises ValueError where its file is missing or damaged.
        """
        entry = self.tensors[name]
        if any(part.sizes[1:] != entry.size[1:] for part in entry.chunks):  # not cut by rows, as FSDP does
            yield self._load(name)
            return
        for part in sorted(entry.chunks, key=lambda part: tuple(part.offsets)):
            if math.prod(part.sizes):
                with _faults(self.folder):
                    yield from self._stored(name, part)

    def _stored(self, name: str, part: ChunkStorageMetadata) -> Iterator[Tensor]:
        """The numbers of a part as they lie in its file: a file of torch.save, inside of which they are not packed."""
        place = self._places.get(MetadataIndex(name, part.offsets))
        if place is None or getattr(place, "transform_descriptors", None):
            raise ValueError(f"{self.folder}: a part of {name} is in no file, or is packed. Save it again.")
        with open_regular(self.folder / place.relative_path) as file:
            inside = _Inside(file, place.offset, place.length)
            require_stored(inside, f"{self.folder / place.relative_path}, {name}")  # type: ignore[arg-type]
            found = _saved(inside, "meta", f"{self.folder}: a part of {name}")
            if (found.shape, found.dtype) != (part.sizes, self.tensors[name].properties.dtype):
                raise ValueError(f"{self.folder}: a part of {name} is {found.dtype} {list(found.shape)} in its file.")
            start = found.untyped_storage()._checkpoint_offset
            if start is None or not found.is_contiguous():  # of the old format, or transposed
                inside.seek(0)
                yield _saved(inside, "cpu", f"{self.folder}: a part of {name}").reshape(-1)
                return
            inside.seek(start + int(found.storage_offset()) * found.dtype.itemsize)
            yield from _blocks(inside, found.numel(), found.dtype)

    def _load(self, name: str) -> Tensor:
        entry = self.tensors[name]
        with _faults(self.folder), warnings.catch_warnings():
            state: dict[str, Any] = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what is wanted here
            dcp.load(state, storage_reader=self._reader, planner=_Planner(), no_dist=True)
        return state[name]


class _Inside(io.RawIOBase):
    """A stretch of an open file, as a file of its own."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "before its beginning")
        self._place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._start + self._place)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._length - self._place)])
        self._place += count
        return count


def _saved(file: io.RawIOBase, device: str, name: str) -> Tensor:
    """The tensor in a file of torch.save, on `meta` without its numbers; ValueError with its name for anything else."""
    try:
        found = torch.load(file, map_location=device, weights_only=True)  # type: ignore[arg-type]
    except Exception:  # on damaged bytes it may raise anything
        found = None
    if not isinstance(found, Tensor):
        raise ValueError(f"{name} cannot be read: it is damaged, or no tensor.")
    return found


def _blocks(file: io.RawIOBase, numel: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """So many numbers from here on, each block in the same memory."""
    memory = torch.empty(min(numel, BLOCK // dtype.itemsize), dtype=dtype)
    view = memoryview(memory.view(torch.uint8).numpy())  # type: ignore[arg-type]
    for done in range(0, numel, memory.numel()):
        count = min(memory.numel(), numel - done)
        if file.readinto(view[: count * dtype.itemsize]) != count * dtype.itemsize:
            raise OSError(errno.EIO, "it is cut off")
        yield memory[:count]


@contextmanager
def _faults(folder: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointException, OSError, RuntimeError) as error:
        raise ValueError(f"{folder}: cannot be read, a file is missing or damaged: {reason_of(error)}") from error
