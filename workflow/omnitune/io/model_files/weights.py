"""Files of weights and their folders, judged by headers and JSON before a library takes them. Imports nothing heavy."""

import errno
import struct
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

from safetensors import SafetensorError, safe_open

from omnitune.errors import shown
from omnitune.io.files import open_regular
from omnitune.io.json_object import FETCH, LFS_POINTER, read_json

HEADER_LIMIT = 16_000_000  # bytes
MAX_TENSORS = 20_000  # of a file; the largest published ones have some thousand
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}  # others are loaded too, as numbers without meaning
COUNTS = (".alpha", "position_ids", "num_batches_tracked")  # ends of names of what some programs keep as whole numbers


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
        with open_regular(path) as start:
            problem = _first_bytes_problem(start.read(64), path.stat().st_size)
        if problem is None:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                if len(names) > MAX_TENSORS:
                    raise OSError(errno.EFBIG, f"it has {len(names)} tensors, more than {MAX_TENSORS}")
                slices = {name: file.get_slice(name) for name in names}
                shapes = {name: found.get_shape() for name, found in slices.items()}
                return Header(shapes, file.metadata() or {}, {name: s.get_dtype() for name, s in slices.items()})
    except OSError as error:
        problem = error.strerror or str(error)
    except SafetensorError as error:
        text = str(error).splitlines()[0][:200]
        cut = "not fully covered" in text
        problem = "it is cut off, or longer than its tensors" if cut else f"its header is damaged ({text})"
    raise ValueError(f"{path}: cannot be read as a .safetensors file: {problem}. {FETCH}")


def read_weights_header(path: Path) -> Header:
    """The same of a file of weights, which are floating-point numbers; ValueError also where they are not."""
    header = read_header(path)
    for name, dtype in header.dtypes.items():
        if dtype not in FLOATS and not (dtype in ("I32", "I64") and name.endswith(COUNTS)):
            raise ValueError(f"{path}: {shown(name)} holds numbers of {dtype}, which weights are not. {FETCH}")
    return header


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


def require_stored(file: Path | IO[bytes], name: Path | str) -> None:
    """Raises ValueError for a file of torch.save with compressed parts, which torch never writes: of any size."""
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as parts:
                found = parts.infolist()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: is damaged ({error}). {FETCH}") from None
        if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in found):
            raise ValueError(f"{name}: its parts are compressed, as torch.save writes none. Save it again.")
    if not isinstance(file, Path):
        file.seek(0)


def require_weights(folder: Path | str) -> None:
    """Raises ValueError for a folder of a model that lacks weights, or has damaged files; see read_weights_header.

    Weights are .safetensors alone: other forms can run code when they are loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder of weights; it does not exist, or is a file. Check the path.")
    require_json(folder)
    found = {path.name for path in folder.glob("*.safetensors")}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        lost = sorted(set(weight_map(index).values()) - found)
        if lost:
            raise ValueError(f"{folder / lost[0]}: is missing, which {index.name} names. {FETCH}")
    if not found:
        others = sorted(path.name for path in folder.glob("*.bin"))
        beside = f" ({others[0]} is a file of torch.save, which is not taken)" if others else ""
        raise ValueError(f"{folder}: holds no .safetensors file{beside}. Put the weights there.")
    for name in sorted(found):
        read_weights_header(folder / name)


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index beside them; ValueError where it has none or names a missing one."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"{index}: has no weight_map. {FETCH}")
    outside = [file for file in found.values() if Path(file).name != file]
    if outside:
        raise ValueError(f"{index}: names {outside[0]!r}, which is no file of this folder.")
    return found


def require_json(folder: Path | str) -> None:
    """Raises ValueError for a .json file of a folder that is no JSON object."""
    for path in sorted(Path(folder).glob("*.json")):
        read_json(path)
