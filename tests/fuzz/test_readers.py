"""Readers of foreign bytes end in a value or in a sentence, whatever the bytes are."""

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import FUZZ, damaged
from omnitune.checkpoints.distributed import read_metadata
from omnitune.config import Mixture, load_config
from omnitune.errors import ConfigError
from omnitune.io.jsonl import read_objects
from omnitune.io.model_files.weights import read_header
from omnitune.models.lora.metadata import checked_metadata
from omnitune.paths import METADATA_FILE

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "X", 3]),
        "shape": st.lists(st.integers(-2, 10**12), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-2, 10**12), min_size=2, max_size=2) | JSON,
    }
)
KEYS = ["r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "target_modules", "modules_to_save", "bias"]


def header_of(content: object, length: int | None, rest: bytes) -> bytes:
    text = json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + rest


HEADERS = st.builds(
    header_of,
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON, max_size=3) | JSON,
    st.none() | st.integers(0, 2**64 - 1),
    st.binary(max_size=16),
)


@FUZZ
@given(content=st.binary(max_size=200) | HEADERS)
def test_headers_of_weights(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(content)
        try:
            shapes, metadata, _ = read_header(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be read as a .safetensors file: ")
        else:
            assert all(side >= 0 for shape in shapes.values() for side in shape)
            assert all(isinstance(text, str) for text in metadata.values())


@FUZZ
@given(
    content=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), JSON, max_size=4) | JSON, cut=st.integers(0, 9)
)
def test_metadata_of_adapters(content: object, cut: int) -> None:
    text = json.dumps(content)
    path = Path("adapter.safetensors")
    try:
        config = checked_metadata(path, text[: len(text) - cut // 8], {"layers.0.to_q": 4, "layers.1.to_q": 8}, False)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert config["target_modules"] == ["layers.0.to_q", "layers.1.to_q"]
        assert config["r"] in (4, 8)


@cache
def metadata() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        dcp.save({"a": torch.zeros(2, 3), "b": [1, "text"]}, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / METADATA_FILE).read_bytes()


@FUZZ
@given(content=st.binary(max_size=100) | st.builds(metadata).flatmap(damaged))
def test_metadata_of_checkpoints(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / METADATA_FILE).write_bytes(content)
        try:
            found = read_metadata(Path(folder))
        except ValueError as error:
            assert str(error).startswith(f"{folder}/")
        else:
            assert all(Path(info.relative_path).name == info.relative_path for info in found.storage_data.values())


@FUZZ
@given(
    content=st.binary(max_size=100)
    | JSON.map(lambda value: json.dumps({"data": value}).encode())
    | st.text().map(str.encode)
)
def test_mixtures(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mix.yml"
        path.write_bytes(content)
        try:
            load_config(path, Mixture)
        except ConfigError as error:
            assert str(error).startswith(str(path))


@FUZZ
@given(content=st.binary(max_size=200) | st.lists(JSON.map(json.dumps), max_size=4).map("\n".join).map(str.encode))
def test_lines_of_samples(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(content)
        try:
            rows = list(read_objects(path))
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(row, dict) for _, row in rows)
