"""Converted weights are what was written, or are named."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from helpers.projects import sha256, write
from omnitune.config.experiment.model import ModelOptions
from omnitune.config.experiment.starts import model_name
from omnitune.pretrained.files import PARTS, WEIGHTED, check_named
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
    with pytest.raises(ValueError, match=r"conversion\.json: cannot be read: .*\. Convert again: snakemake "):
        check_weights([converted])


@pytest.mark.parametrize("name", ["/proc/kmsg", "../secret", "a/../../secret", "a//b", ""])
def test_a_manifest_names_files_of_its_folder_alone(converted: Path, name: str) -> None:
    """Others would be opened, however long they are."""
    content = {"files": {name: {"sha256": "0"}}}
    write(converted / "conversion.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"conversion\.json: names '.*', which is no file of this folder"):
        check_weights([converted])
    write(converted.parent / "manifest.json", json.dumps({f"transformer/{name}": "0"}))
    (converted / "conversion.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json: names '.*', which is no file of this folder"):
        check_weights([converted])
    write(converted.parent / "manifest.json", "[" * 100_000)
    with pytest.raises(ValueError, match=r"manifest\.json: cannot be read"):
        check_weights([converted])


def test_each_repository_is_fetched_at_its_own_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, asked = {}, {}

    def fetch(name: str, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        fetched[name], asked[name] = revision, allow_patterns
        folder = tmp_path / name
        write(pipeline_folder(folder) / "config.json", "{}")
        save_file({}, folder / "model.safetensors")
        return str(folder)

    monkeypatch.setattr("omnitune.io.model_files.hub.snapshot_download", fetch)
    sources = {"pretrained_vae_model_name_or_path": "b/vae", "pretrained_text_encoder_model_name_or_path": "c/text"}
    revisions = {"pretrained_vae_revision": "2", "pretrained_text_encoder_revision": "3"}
    options = ModelOptions(pretrained_model_path="a/base", pretrained_revision="1", **sources, **revisions)
    prepare_pretrained(options, tmp_path / "made")
    assert fetched == {"a/base": "1", "b/vae": "2", "c/text": "3"}
    assert asked["a/base"] == ["model_index.json", "transformer/*", "scheduler/*"], "what others are named for is left"
    assert asked["b/vae"] == ["vae/*"]
    names = {model_name(ModelOptions(pretrained_model_path="a/base", **sources, **revisions, pretrained_revision=None))}
    names |= {model_name(ModelOptions(pretrained_model_path="a/base", **sources)), model_name(options)}
    assert len(names) == 3
    with pytest.raises(
        ValueError, match="pretrained_vae_revision: has no effect, as pretrained_vae_model_name_or_path"
    ):
        ModelOptions(pretrained_model_path="a/base", pretrained_vae_revision="2")


def pipeline_folder(folder: Path) -> Path:
    for file in ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in PARTS)):
        write(folder / file, "{}")
    for part in WEIGHTED:
        save_file({}, folder / part / "model.safetensors")
    return folder


@pytest.mark.parametrize("broken", [(), ("link",), ("link", "symlink")])
def test_weights_of_a_local_folder_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    """Where the file system allows it; nor is the mode of the one file that is left changed."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("not here")

    for call in broken:
        monkeypatch.setattr(f"os.{call}", refuse)
    base = pipeline_folder(tmp_path / "base")
    weights = base / "vae/model.safetensors"
    weights.chmod(0o440)
    prepare_pretrained(ModelOptions(pretrained_model_path=str(base)), tmp_path / "made")
    taken = tmp_path / "made/vae/model.safetensors"
    assert taken.samefile(weights) == (len(broken) < 2) and taken.is_symlink() == (len(broken) == 1)
    assert weights.stat().st_mode & 0o777 == 0o440
    assert not (tmp_path / "made/vae/config.json").samefile(base / "vae/config.json"), "small files may be edited"
    check_weights([tmp_path / "made/vae"])
    prepare_pretrained(ModelOptions(pretrained_model_path=str(base)), tmp_path / "made")
    assert weights.is_file(), "what is replaced leaves the original"


def test_a_vae_lies_in_the_folder_that_is_named(tmp_path: Path) -> None:
    base, vae = pipeline_folder(tmp_path / "base"), tmp_path / "vae"
    write(vae / "fp32/config.json", '{"mine": 1}')
    save_file({}, vae / "fp32/model.safetensors")
    options = {"pretrained_model_path": str(base), "pretrained_vae_model_name_or_path": str(vae)}
    made = {}
    for place, inside in ((vae, "fp32"), (vae / "fp32", None)):
        asked = ModelOptions(**{**options, "pretrained_vae_model_name_or_path": str(place)}, vae_subfolder=inside)
        check_named(asked)
        prepare_pretrained(asked, tmp_path / "made")
        assert json.loads((tmp_path / "made/vae/config.json").read_text()) == {"mine": 1}
        made[model_name(asked)] = asked
    assert len(made) == 2
    with pytest.raises(
        ValueError, match=r"vae/vae lacks config\.json; model\.vae_subfolder says where in .*vae the VAE is"
    ):
        check_named(ModelOptions(**options))
    with pytest.raises(ValueError, match="needs names of folders, as in `vae`"):
        ModelOptions(**options, vae_subfolder="../x")
