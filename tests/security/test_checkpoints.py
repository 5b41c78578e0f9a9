"""Checkpoints from strangers run no code and read nothing but their own files, whoever opens them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict

from omnitune.checkpoints.distributed import MAX_METADATA, _Planner
from omnitune.checkpoints.save import CheckpointSaver, load_checkpoint
from omnitune.checkpoints.states import TrainerState, read_state
from omnitune.conversion.read import read_checkpoint
from omnitune.distributed.parallel import SharedError
from omnitune.io.model_files.weights import require_stored
from omnitune.paths import METADATA_FILE, MODEL_FOLDER, OPTIMIZER_FOLDER, STATE_FILE

pytestmark = pytest.mark.unit


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


class Checkpoint:
    """A checkpoint of one step without hashes, which an attacker would write anew anyway."""

    def __init__(self, folder: Path) -> None:
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        saver = CheckpointSaver(folder, self.model, [self.optimizer], None, background=False, limit=None, keep=set())
        saver.save(TrainerState(1, {"options": {}, "data": {}}, None))
        saver.complete()
        self.path = folder / "checkpoint-1"
        state = {**vars(read_state(self.path)), "files": {}}
        (self.path / STATE_FILE).write_text(json.dumps(state))

    def metadata(self, part: str) -> Any:
        return pickle.loads((self.path / part / METADATA_FILE).read_bytes())

    def write_metadata(self, part: str, content: Any) -> None:
        (self.path / part / METADATA_FILE).write_bytes(pickle.dumps(content))

    def resume(self) -> None:
        load_checkpoint(self.path, self.model, [self.optimizer], None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path)


def test_payloads_of_these_tests_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_metadata_runs_no_code(checkpoint: Checkpoint, tmp_path: Path, hidden: bool) -> None:
    """Neither where it is a payload, nor where one hides in what a whole one holds."""
    trace = tmp_path / "trace"
    for part in (MODEL_FOLDER, OPTIMIZER_FOLDER):
        content = checkpoint.metadata(part)
        content.planner_data = Payload(trace)
        checkpoint.write_metadata(part, content if hidden else Payload(trace))
    message = r"\.metadata: is not the metadata of a distributed checkpoint: it asks for \w+\.\w+"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(checkpoint.path)
    with pytest.raises(SharedError, match=r"it asks for .* Remove .*checkpoint-1 to go on"):
        checkpoint.resume()
    assert not trace.exists()


def test_an_object_in_place_of_a_number_of_the_optimizer_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All names are those of a whole checkpoint; one of its plain values is a payload."""
    trace, folder = tmp_path / "trace", checkpoint.path / OPTIMIZER_FOLDER
    whole: dict[str, Any] = get_state_dict(checkpoint.model, [checkpoint.optimizer])[1]
    whole["param_groups"][0]["lr"] = Payload(trace)
    for file in folder.iterdir():
        file.unlink()
    dcp.save(whole, checkpoint_id=folder, no_dist=True)
    with pytest.raises(SharedError, match=r"optimizer_0: cannot be read.*lr is neither a plain value nor a tensor"):
        checkpoint.resume()
    assert not trace.exists()


def _elsewhere(content: Any) -> None:
    for info in content.storage_data.values():
        object.__setattr__(info, "relative_path", "../../secret")


def _huge(content: Any) -> None:
    for entry in content.state_dict_metadata.values():
        entry.size = torch.Size([1 << 40, 1 << 10])


def _wrapped_around(content: Any) -> None:
    """Of 2^80 numbers, which 64 bits count as none, or of fewer than none beside more than there are."""
    first, second = content.state_dict_metadata.values()
    first.size, second.size = torch.Size([1 << 40, 1 << 40]), torch.Size([-(1 << 40), 1 << 40])


def _holes(content: Any) -> None:
    for entry in content.state_dict_metadata.values():
        entry.chunks = []


def _number_for_a_name(content: Any) -> None:
    found = content.state_dict_metadata
    found[5] = found.pop(next(iter(found)))


def _twice(content: Any) -> None:
    """The first half of each tensor stands for the second, too."""
    for entry in content.state_dict_metadata.values():
        half = torch.Size([entry.size[0] // 2, *entry.size[1:]])
        start = torch.Size([0] * len(entry.size))
        entry.chunks = [ChunkStorageMetadata(start, half)] * 2


def _fields(content: Any) -> None:
    content.storage_data = 3


def _placed(**values: object) -> Callable[[Any], None]:
    """A part that is said to lie elsewhere in its file."""

    def change(content: Any) -> None:
        for key, value in values.items():
            object.__setattr__(next(iter(content.storage_data.values())), key, value)

    return change


OUTSIDE = r"names a part of .*\.distcp that is not inside of its \d+ bytes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_placed(offset=-1), OUTSIDE),
        (_placed(offset=1 << 40), OUTSIDE),
        (_placed(length=1 << 40), OUTSIDE),
        (_placed(length=-1), OUTSIDE),
        (_placed(offset="0"), OUTSIDE),
        (_placed(offset=0.5), OUTSIDE),
        (_elsewhere, r"names '\.\./\.\./secret', which is no file of this folder"),
        (_huge, r"names tensors of \d+ bytes, but the files beside it have \d+"),
        (_wrapped_around, r"names tensors of \d+ bytes, but the files beside it have \d+"),
        (_holes, r"do not make up the whole tensor"),
        (_number_for_a_name, r"names a tensor 5, which is no text"),
        (_twice, r"do not make up the whole tensor"),
        (_fields, r"is not the metadata of a distributed checkpoint"),
    ],
)
def test_metadata_that_asks_for_too_much_is_refused(
    checkpoint: Checkpoint, change: Callable[[Any], None], message: str
) -> None:
    content = checkpoint.metadata(MODEL_FOLDER)
    change(content)
    checkpoint.write_metadata(MODEL_FOLDER, content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(checkpoint.path)
    with pytest.raises(SharedError, match=message):
        checkpoint.resume()


def test_what_a_checkpoint_claims_is_compared_with_files_that_are_there(checkpoint: Checkpoint) -> None:
    """Nothing is allocated for what no file holds."""
    content = checkpoint.metadata(MODEL_FOLDER)
    _huge(content)
    checkpoint.write_metadata(MODEL_FOLDER, content)
    [file] = (checkpoint.path / MODEL_FOLDER).glob("*.distcp")
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file}: is missing, which .*\.metadata names"):
        read_checkpoint(checkpoint.path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # 9 bytes, for which memory of 16 GB would be asked
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x04" + b"\x8f" * 1000 + b".",
        b"\x80\x04]" + b"2" * 1000 + b".",
    ],
)
def test_metadata_take_no_memory_that_they_have_no_bytes_for(checkpoint: Checkpoint, content: bytes) -> None:
    (checkpoint.path / MODEL_FOLDER / METADATA_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the metadata of a distributed checkpoint: "):
        read_checkpoint(checkpoint.path)


def test_metadata_have_a_limit(checkpoint: Checkpoint) -> None:
    with (checkpoint.path / MODEL_FOLDER / METADATA_FILE).open("r+b") as file:
        file.truncate(MAX_METADATA + 1)
    with pytest.raises(ValueError, match=rf"it has more than {MAX_METADATA} bytes"):
        read_checkpoint(checkpoint.path)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_objects_are_not_read_and_nobody_is_told_how(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    write({"a": Payload(tmp_path / "owned")}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin: cannot be read as a file of torch\.save: it ") as error:
        read_checkpoint(tmp_path / "model.bin")
    assert "weights_only" not in str(error.value) and str(error.value).endswith("objects may run code.")
    assert not (tmp_path / "owned").exists()


def compressed(content: object) -> bytes:
    """A file of torch.save, packed anew."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def test_what_is_compressed_is_not_unpacked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A thousandth of its size may be enough to fill all memory."""
    (tmp_path / "model.pt").write_bytes(compressed({"a": torch.zeros(1 << 16)}))
    with pytest.raises(ValueError, match=r"model\.pt: its parts are compressed"):
        read_checkpoint(tmp_path / "model.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "damaged.pt")
    content = (tmp_path / "damaged.pt").read_bytes()
    (tmp_path / "damaged.pt").write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x03", 1))
    with pytest.raises(ValueError, match=r"damaged\.pt: is damaged \(Bad magic number"):
        require_stored(tmp_path / "damaged.pt", tmp_path / "damaged.pt")
    with pytest.raises(ValueError, match="lr: its parts are compressed"):
        _Planner().load_bytes(SimpleNamespace(storage_index=SimpleNamespace(fqn="lr")), io.BytesIO(compressed(0.1)))


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x04.", b"cos\nsystem\n.", b"garbage", b"\x80\x04N."])
def test_damaged_metadata_is_named(checkpoint: Checkpoint, content: bytes) -> None:
    (checkpoint.path / MODEL_FOLDER / METADATA_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model_fsdp_0/\.metadata: is not the metadata"):
        read_checkpoint(checkpoint.path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["bin", "pt", "pth"])
def test_files_of_torch_save_run_no_code(tmp_path: Path, suffix: str, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"model.{suffix}"
    torch.save({"a": torch.zeros(1), "b": Payload(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"cannot be read as a file of torch\.save"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError, match=r"cannot be read as a file of torch\.save"):
        read_checkpoint(path)
    assert not trace.exists()
