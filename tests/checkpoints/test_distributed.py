"""Tensors of distributed checkpoints, in pieces, as any number of processes has cut them."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from omnitune.checkpoints import distributed
from omnitune.checkpoints.distributed import TensorFolder
from omnitune.conversion.read import read_checkpoint

pytestmark = pytest.mark.unit

PLAIN = {
    "odd": torch.randn(7, 3),
    "half": torch.randn(5).to(torch.bfloat16),  # begins at any byte of the file
    "turned": torch.randn(4, 6).T,
    "number": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
    "part": torch.randn(9, 4)[2:5],
}


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Any:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return dcp.FileSystemReader(folder).read_metadata()


def saved_in_parts(folder: Path, whole: torch.Tensor, starts: list[tuple[int, ...]], sizes: list[torch.Size]) -> None:
    """A tensor `a`, each part by another process."""
    chunks, places = [], {}
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        part = whole[tuple(slice(at, at + side) for at, side in zip(start, size, strict=True))].contiguous()
        found = saved(folder / str(number), {"a": part})
        [place] = found.storage_data.values()
        (folder / str(number) / place.relative_path).rename(folder / f"__{number}_0.distcp")
        place.relative_path = f"__{number}_0.distcp"
        chunks.append(ChunkStorageMetadata(torch.Size(start), size))
        places[MetadataIndex("a", torch.Size(start))] = place
    properties = found.state_dict_metadata["a"].properties
    found.state_dict_metadata = {"a": TensorStorageMetadata(properties, whole.shape, chunks[::-1])}  # in any order
    found.storage_data = places
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def test_tensors_of_every_form_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BLOCK", 16)
    saved(tmp_path, PLAIN)
    found = read_checkpoint(tmp_path)
    for name, tensor in PLAIN.items():
        assert torch.equal(found[name].load(), tensor) and found[name].load().dtype == tensor.dtype, name
    assert max(piece.numel() for piece in found["odd"].pieces()) == 4, "as many as fit into a block"


@pytest.mark.parametrize(
    ("starts", "sizes"),
    [
        ([(0, 0), (3, 0)], [torch.Size((3, 5)), torch.Size((4, 5))]),
        ([(0, 0), (0, 2)], [torch.Size((7, 2)), torch.Size((7, 3))]),  # by columns: read whole
    ],
)
def test_parts_of_several_processes_are_one_tensor(
    tmp_path: Path, starts: list[tuple[int, ...]], sizes: list[torch.Size]
) -> None:
    whole = torch.randn(7, 5)
    saved_in_parts(tmp_path, whole, starts, sizes)
    lazy = read_checkpoint(tmp_path)["a"]
    assert torch.equal(lazy.load(), whole)
    assert torch.equal(lazy.to(torch.bfloat16).load(), whole.to(torch.bfloat16))


def packed(content: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return result.getvalue()


def other(tensor: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (packed, "its parts are compressed"),
        (lambda _: other(torch.zeros(50, 40).double()), r"a part of a is torch\.float64 \[50, 40\] in its file"),
        (lambda _: other(torch.zeros(40, 50)), r"a part of a is torch\.float32 \[40, 50\] in its file"),
        (lambda content: content[:-2000], "a part of a cannot be read: it is damaged, or no tensor"),
        (
            lambda content: content.replace(b"PK\x03\x04", b"PK\x03\x05"),
            "a part of a cannot be read: it is damaged, or no",
        ),
        (lambda _: other({"a": torch.zeros(50, 40)}), "a part of a cannot be read: it is damaged, or no tensor"),
    ],
)
def test_a_part_that_is_another_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    metadata = saved(tmp_path, {"a": torch.zeros(50, 40)})
    [place] = metadata.storage_data.values()
    path = tmp_path / place.relative_path
    content = spoil(path.read_bytes())
    path.write_bytes(content + bytes(10_000))  # of the size that is claimed
    place.length = len(content)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=message):
        list(TensorFolder(tmp_path).pieces("a"))
