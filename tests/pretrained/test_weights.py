"""Converted weights are what was written, or are named."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from helpers.projects import sha256, write
from omnitune.config.options import ModelOptions
from omnitune.config.starts import model_name
from omnitune.pretrained.files import PARTS, WEIGHTED
from omnitune.pretrained.prepare import prepare_pretrained
from omnitune.pretrained.weights import check_weights

pytestmark = pytest.mark.unit

FILES = {"config.json": "{}", "diffusion_pytorch_model.safetensors": "weights"}


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments/x/checkpoint-3/transformer"
    facts = {name: {"sha256": sha256(text), "bytes": len(text)} for name, text in FILES.items()}
    for name, text in FILES.items():
        write(folder / name, text)
    write(folder / "conversion.json", json.dumps({"kind": "full", "files": facts}))
    return folder


def test_whole_weights_are_looked_at(converted: Path) -> None:
    assert check_weights([converted]) == len(FILES)
    write(converted / ".snakemake_timestamp", "")
    assert check_weights([converted]) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_changed_and_missing_weights_are_named_with_the_command(converted: Path, name: str) -> None:
    again = rf"Convert again: snakemake --cores 2 --force {converted}/conversion\.json"
    write(converted / name, "changed")
    with pytest.raises(ValueError, match=rf"transformer/{name}: is not what was written \(its SHA-256 .*{again}"):
        check_weights([converted])
    (converted / name).unlink()
    with pytest.raises(ValueError, match=rf"transformer/{name}: is missing\. {again}"):
        check_weights([converted])


def test_a_damaged_manifest_is_named(converted: Path) -> None:
    write(converted / "conversion.json", "{")
    with pytest.raises(ValueError, match=r"conversion\.json: cannot be read .*\. Convert again: snakemake "):
        check_weights([converted])


def test_each_repository_is_fetched_at_its_own_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = {}

    def fetch(name: str, revision: str | None, **_: object) -> str:
        fetched[name] = revision
        folder = tmp_path / name
        for file in (
            "model_index.json",
            "config.json",
            "scheduler/scheduler_config.json",
            *(f"{part}/config.json" for part in PARTS),
        ):
            write(folder / file, "{}")
        for part in (".", *WEIGHTED):
            save_file({}, folder / part / "model.safetensors")
        return str(folder)

    monkeypatch.setattr("omnitune.pretrained.hub.snapshot_download", fetch)
    sources = {"pretrained_vae_model_name_or_path": "b/vae", "pretrained_text_encoder_model_name_or_path": "c/text"}
    revisions = {"pretrained_vae_revision": "2", "pretrained_text_encoder_revision": "3"}
    options = ModelOptions(pretrained_model_path="a/base", pretrained_revision="1", **sources, **revisions)
    prepare_pretrained(options, tmp_path / "made")
    assert fetched == {"a/base": "1", "b/vae": "2", "c/text": "3"}
    names = {model_name(ModelOptions(pretrained_model_path="a/base", **sources, **revisions, pretrained_revision=None))}
    names |= {model_name(ModelOptions(pretrained_model_path="a/base", **sources)), model_name(options)}
    assert len(names) == 3
    with pytest.raises(
        ValueError, match="pretrained_vae_revision: has no effect, as pretrained_vae_model_name_or_path"
    ):
        ModelOptions(pretrained_model_path="a/base", pretrained_vae_revision="2")
