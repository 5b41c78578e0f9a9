"""Read the model state out of a training checkpoint, whichever way it was written, and published weights."""

import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from omnitune.checkpoints.distributed import TensorFolder
from omnitune.conversion.tensors import NAMES, LazyTensor, State, open_safetensors
from omnitune.errors import cut, reason_of
from omnitune.io.model_files.weights import require_stored, weight_map
from omnitune.paths import AVERAGE_FOLDER, METADATA_FILE, MODEL_FOLDER
from omnitune.pretrained.transformer import INDEX

KNOWN_NAMES = (MODEL_FOLDER, "pytorch_model_fsdp.bin", "pytorch_model.bin", "model.safetensors")
WRAPPED = 3  # most dictionaries around a model state, as in {"state": {"model": ..}}
WRAPPERS = ("model.", "module.", "_orig_mod.", "base_model.")


def read_checkpoint(path: Path) -> State:
    """The model state of a checkpoint, in the dtype that it was saved in; its tensors are read as they are asked for.

    Args:
        path: a checkpoint folder (`checkpoint-N`) that holds one of KNOWN_NAMES, a torch distributed checkpoint folder,
            a `.bin` / `.pt` file of torch.save, or a `.safetensors` file.

    Returns:
        Parameters by name, without the wrapper prefixes that accelerate, DDP, torch.compile and PEFT add.

    Raises:
        ValueError: for a path that is missing, incomplete, ambiguous, unreadable or no model checkpoint.
    """
    path = _locate(Path(path))
    state = _reader_of(path)(path)
    if not state:
        raise ValueError(f"{path}: holds no tensors. Give the checkpoint folder that training wrote.")
    return _without_wrappers(state)


def averaged_state(checkpoint: Path) -> Path:
    """Where a checkpoint keeps the average of its weights; ValueError where it has none."""
    path = Path(checkpoint) / AVERAGE_FOLDER
    if Path(checkpoint).exists() and not path.is_dir():
        raise ValueError(
            f"{checkpoint}: holds no averaged weights ({AVERAGE_FOLDER}): it was trained with train.ema_decay: 0, or "
            "is no folder that training wrote. Convert it without --ema, or set train.ema_decay above 0 and train "
            "again."
        )
    return path


def _locate(path: Path) -> Path:
    """The file, or the distributed checkpoint folder, that holds the model state."""
    partial = path.absolute().with_name(f"{path.absolute().name}.tmp")  # `.` has no name
    if path.suffix == ".tmp" or (not path.exists() and partial.exists()):
        found = path if path.suffix == ".tmp" else partial
        raise ValueError(
            f"{found}: is a checkpoint that training was interrupted in while writing. Start the training again; it "
            "goes on from the newest complete checkpoint."
        )
    if not path.exists():
        raise ValueError(f"{path}: does not exist. {_neighbours(path)}")
    if path.is_file() or (path / METADATA_FILE).is_file():
        return path
    found_names = [name for name in KNOWN_NAMES if (path / name).exists()]
    if len(found_names) == 1:
        return path / found_names[0]
    if found_names:
        raise ValueError(f"{path}: holds several model states: {', '.join(found_names)}. Name the one to convert.")
    if any(path.glob("*.distcp")):
        raise ValueError(f"{path}: a distributed checkpoint without {METADATA_FILE}: it was never finished.")
    raise ValueError(
        f"{path}: is not a checkpoint. Looked in it for {', '.join(KNOWN_NAMES)} and for {METADATA_FILE} of a "
        f"distributed checkpoint; it holds {_listing(path)}."
    )


def _neighbours(path: Path) -> str:
    """What lies where a missing path was looked for."""
    if not path.parent.is_dir():
        return f"Neither does {path.parent}."
    checkpoints = sorted(entry.name for entry in path.parent.glob("checkpoint-*") if entry.suffix != ".tmp")
    return f"{path.parent} holds {', '.join(checkpoints) if checkpoints else 'no checkpoint'}."


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


def _reader_of(path: Path) -> Callable[[Path], State]:
    if path.is_dir():
        return _read_distributed
    if path.suffix == ".safetensors":
        return open_safetensors
    if path.suffix in {".bin", ".pt", ".pth"}:
        return _read_torch
    raise ValueError(f"{path}: is not a checkpoint: its name ends in neither .safetensors nor .bin, .pt, .pth.")


def _read_distributed(folder: Path) -> State:
    """A torch distributed checkpoint; needs no process group."""
    if not (folder / METADATA_FILE).is_file():
        raise ValueError(f"{folder}: a distributed checkpoint without {METADATA_FILE}: it was never finished.")
    found = TensorFolder(folder)
    return {
        name: LazyTensor(tuple(entry.size), entry.properties.dtype, partial(found.pieces, name))
        for name, entry in found.tensors.items()
    }


def _read_torch(path: Path) -> State:
    if not path.is_file():
        raise ValueError(f"{path}: is no regular file.")
    require_stored(path, path)
    try:
        content = _load(path, mmap=True)
    except RuntimeError:  # the old format of torch.save, which cannot be mapped into memory
        content = _load(path, mmap=False)
    for _ in range(WRAPPED):
        if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), dict):
            content = next(iter(content.values()))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, no model state.")
    others = [str(name)[:100] for name, value in content.items() if not _is_weight(name, value)]
    if others:
        raise ValueError(f"{path}: {some(others)} are no tensors of numbers with a name: this is not a model state.")
    return {name: LazyTensor.of(tensor) for name, tensor in content.items()}


def _is_weight(name: Any, value: Any) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and plain and value.dtype in NAMES


def _load(path: Path, mmap: bool) -> Any:
    """What a file of torch.save holds; RuntimeError where it cannot be mapped, ValueError where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol of pickle
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        if mmap and isinstance(error, RuntimeError):
            raise
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    """Why torch.load has failed; where it met objects, not in its words, which advise to let them run."""
    if isinstance(error, UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]}" if asked else "does not unpickle to plain tensors"
        return (
            f"{path}: cannot be read as a file of torch.save: it {what}. Only tensors are read: objects may run code."
        )
    return f"{path}: cannot be read as a file of torch.save: {reason_of(error)}"


def _without_wrappers(state: State) -> State:
    """Strips the prefixes that all keys share, such as `model.` or `module._orig_mod.`."""
    stripped = True
    while stripped:
        stripped = False
        for wrapper in WRAPPERS:
            if all(name.startswith(wrapper) for name in state):
                state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
                stripped = True
    return state


def read_published(folder: Path) -> State:
    """The tensors of a published `transformer` folder, of one file or of several that an index names.

    Raises:
        ValueError: for a folder that is not there or has no weights, an index that cannot be read, and files that are
            damaged or lack a tensor.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder. Name one with published weights of a transformer.")
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{folder}: holds {len(files)} .safetensors files; published weights are one, or several with {INDEX}."
            )
        return open_safetensors(files[0])
    places = weight_map(index)
    opened = {file: open_safetensors(folder / file) for file in sorted(set(places.values()))}
    lost = [name for name, file in places.items() if name not in opened[file]]
    if lost:
        raise ValueError(f"{index}: names {some(lost)}, which its files do not hold.")
    return {name: opened[file][name] for name, file in places.items()}


def some(names: Iterable[str], limit: int = 10) -> str:
    """The first `limit` names and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(cut(name) for name in listed[:limit]) + more
