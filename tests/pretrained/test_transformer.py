"""Weights from elsewhere to train from: what is missing is said before any job, from names alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.projects import changed
from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions, starting_weights
from omnitune.errors import ConfigError
from omnitune.models import OmniGen2Transformer2DModel, read_transformer
from omnitune.pretrained.files import PARTS, PATH_KEY, require_parts
from omnitune.pretrained.transformer import parameter_names, require_transformer, transformer_files

pytestmark = pytest.mark.unit

KEYS = Path(__file__).parents[1] / "data/reference/transformer_keys.tsv"
FILE = "diffusion_pytorch_model.safetensors"


def test_names_are_those_of_the_model() -> None:
    published = {line.split("\t")[0] for line in KEYS.read_text().splitlines()[1:]}
    assert parameter_names({"num_layers": 32, "num_refiner_layers": 2}) == published and len(published) == 582
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel(**TRANSFORMER)
    assert parameter_names(dict(model.config)) == model.state_dict().keys()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    OmniGen2Transformer2DModel(**TRANSFORMER).save_pretrained(tmp_path / "weights", max_shard_size="100KB")
    return tmp_path / "weights"


def test_a_whole_folder_is_taken(folder: Path) -> None:
    assert require_transformer(folder, "x")["num_layers"] == TRANSFORMER["num_layers"]
    assert {path.name for path in transformer_files(folder)} == {path.name for path in folder.iterdir()}


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _without_index(folder: Path) -> None:
    (folder / f"{FILE}.index.json").unlink()


def _without_a_file(folder: Path) -> None:
    next(folder.glob("*-of-*")).unlink()


def _without_a_tensor(folder: Path) -> None:
    for path in folder.glob("*-of-*"):
        save_file({name: tensor for name, tensor in load_file(path).items() if "layers.1.attn.to_q" not in name}, path)


def _with_a_tensor(folder: Path) -> None:
    path = next(folder.glob("*-of-*"))
    save_file({**load_file(path), "extra": torch.zeros(1)}, path)


def _cut_off(folder: Path) -> None:
    path = next(folder.glob("*-of-*"))
    path.write_bytes(path.read_bytes()[:-9])


def _configured(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))

    return change


def _outside(folder: Path) -> None:
    (folder / f"{FILE}.index.json").write_text(json.dumps({"weight_map": {"x_embedder.weight": "../secret"}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_config, r"config\.json is missing, which says the architecture"),
        (_without_index, r"weights has neither diffusion_pytorch_model\.safetensors nor .*; it holds config\.json"),
        (_without_a_file, r"safetensors: cannot be read as a \.safetensors file: No such file"),
        (_without_a_tensor, r"weights lacks 1 of the \d+ tensors .*: layers\.1\.attn\.to_q\.weight"),
        (_with_a_tensor, r"has besides 1 of .*: extra"),
        (_cut_off, r"it is cut off"),
        (_configured(num_layers=3), r"lacks 15 of the \d+ tensors .*: layers\.2\.attn"),
        (_configured(num_layers=10**9), r"config\.json: num_layers: 1000000000 is not allowed"),
        (_configured(_class_name="FluxTransformer2DModel"), r"is of a FluxTransformer2DModel, not of OmniGen2"),
        (_outside, r"names '\.\./secret', which is no file of this folder"),
    ],
)
def test_what_is_missing_is_named(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        require_transformer(folder, "model.transformer_path")


def test_a_lost_tensor_is_never_left_at_random(folder: Path) -> None:
    _without_a_tensor(folder)
    with pytest.raises(ValueError, match=r"weights: its files lack 1 tensors of the model, such as layers\.1\.attn"):
        read_transformer(folder)


def test_a_path_to_no_pipeline_is_refused_with_what_to_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder of weights, no pipeline\. .* as model\.transformer_path"):
        require_parts(folder, PARTS, PATH_KEY)
    pipeline = tmp_path / "pipeline"
    for part in PARTS[:-1]:
        (pipeline / part).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lacks model_index\.json, scheduler"):
        require_parts(pipeline, PARTS, PATH_KEY)


def test_training_starts_from_the_folder(folder: Path) -> None:
    model = {"pretrained_model_path": "demo", "transformer_path": str(folder)}
    options = ExperimentOptions.model_validate(changed(model=model))
    start = starting_weights(options, {options.name: options})
    assert (start.base, start.transformer) == (Path("resources/pretrained/demo"), folder)
    converted = "experiments/a/checkpoint-5/transformer"
    for others, message in (
        ({"transformer_path": converted}, "name it as pretrained_model_path, so that it is trained first"),
        ({"pretrained_model_path": converted}, "transformer_path: has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            ExperimentOptions.model_validate(changed(model=model | others))
    elsewhere = ExperimentOptions.model_validate(changed(model={"pretrained_model_path": converted}))
    with pytest.raises(ConfigError, match=r"Weights from elsewhere: .* their folder as model\.transformer_path"):
        starting_weights(elsewhere, {elsewhere.name: elsewhere})
