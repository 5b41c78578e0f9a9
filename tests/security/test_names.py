"""Names in a stranger's files: none runs in a shell, leads out of its folder or brings private files along."""

import json
import os
from pathlib import Path

import pytest

from helpers.pictures import picture
from helpers.projects import changed, project, write
from omnitune.config.options import ModelOptions
from omnitune.config.starts import model_name
from omnitune.errors import ConfigError
from omnitune.paths import require_safe
from omnitune.pretrained.files import PARTS
from omnitune.pretrained.prepare import prepare_pretrained

pytestmark = pytest.mark.unit

ATTACKS = [
    "$(touch appeared)", "`touch appeared`", "a'; touch appeared; '", 'a" b', "a\\b", "a\nb", "a|b", "a&b", "{wildcard}",
    "a*b", "a;b", "~!$HOME", "'quoted'", "a\x00b",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipeline(folder: Path) -> Path:
    """Stands for a base model: files that nobody loads here."""
    for part in PARTS:
        write(folder / part / "config.json", "{}")
    write(folder / "model_index.json", "{}")
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_no_sign_of_a_shell_reaches_a_job(name: str) -> None:
    with pytest.raises(ValueError, match=r"mix\.yml: the path .* is not allowed, for "):
        require_safe(f"/data/{name}.jsonl", "mix.yml")


@pytest.mark.parametrize("name", ["猫/图.jsonl", "Ünï/çé.jsonl", "my data (2)/a-b_c+d=e,f@1.0%.jsonl", "../a/[1].png"])
def test_usual_names_in_any_script_are_safe(name: str) -> None:
    require_safe(name, "mix.yml")


def test_a_name_is_no_option_of_a_command() -> None:
    with pytest.raises(ValueError, match="'-' at its beginning"):
        require_safe("--config.jsonl", "mix.yml")


def test_sources_of_a_mixture_are_refused_by_name(place: Path) -> None:
    """A file inside of a folder that the mixture names is met before any job, as one that it names itself."""
    write(place / "shared/$(touch appeared).jsonl", "")
    write(place / "mix.yml", {"data": [{"path": "shared"}]})
    with pytest.raises(ValueError, match=r"mix\.yml: source 'shared': the path .*touch appeared"):
        project(place, changed()).read_files()
    assert not (place / "appeared").exists()


@pytest.mark.parametrize("path", ["...yml", "$(touch appeared).yml", "a b.yml", "..yml", "-x.yml"])
def test_a_mixture_names_a_folder_of_its_own(place: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="names folders"):
        project(place, changed(data={"data_path": path}))


def test_images_of_prompts_are_refused_by_name(place: Path) -> None:
    picture(8, 8).save(place / "$(touch appeared).png")
    row = {"task_type": "edit", "instruction": "a", "key": "k", "input_images": ["$(touch appeared).png"]}
    write(place / "prompts.jsonl", json.dumps(row) + "\n")
    found = project(place, changed(), benchmarks=("b",))
    found.benchmarks["b"] = found.benchmarks["b"].model_copy(update={"prompts": "prompts.jsonl"})
    with pytest.raises(ValueError, match=r"prompts\.jsonl: the path .*touch appeared"):
        found.prompts("b")


def test_adapters_are_refused_by_name(place: Path) -> None:
    options = changed(train={"lora_ft": True, "lora_path": "$(touch appeared).safetensors"})
    with pytest.raises(ValueError, match=r"train\.lora_path: the path .*touch appeared"):
        project(place, options).starting_adapter("x")


def test_files_of_a_base_model_are_refused_by_name(place: Path) -> None:
    write(pipeline(place / "base") / "vae/deep/$(touch appeared).json", "")
    with pytest.raises(ValueError, match=r"pretrained_model_path: 'base': the path .*touch appeared"):
        project(place, changed(model={"pretrained_model_path": "base"})).read_files()


@pytest.mark.parametrize("path", ["..", ".", "../..", "/", "-x", "./.hidden"])
def test_no_base_model_is_kept_above_its_folder(path: str) -> None:
    """`..` made resources/ the folder of the base model, which was emptied for it."""
    assert model_name(ModelOptions(pretrained_model_path=path)).startswith("base-")


@pytest.mark.parametrize("kind", ["file", "folder", "device", "fifo", "nothing"])
def test_links_out_of_a_base_model_are_not_followed(place: Path, kind: str) -> None:
    write(place / "secret/key", "private")
    vae = pipeline(place / "base") / "vae"
    targets = {"file": "../../secret/key", "folder": "../../secret", "device": "/dev/zero", "nothing": "missing"}
    if kind == "fifo":
        os.mkfifo(vae / "linked")
    else:
        (vae / "linked").symlink_to(targets[kind])
    with pytest.raises(ValueError, match=r"base/vae/linked: is "):
        prepare_pretrained(ModelOptions(pretrained_model_path="base"), place / "resources/base")
    assert not (place / "resources/base").exists()


def test_a_snapshot_of_a_download_cache_is_copied(place: Path) -> None:
    """Its files are links to blobs beside the snapshots."""
    snapshot = pipeline(place / "hub/snapshots/0123")
    write(place / "hub/blobs/ab", "weights")
    (snapshot / "vae/weights").symlink_to("../../../blobs/ab")
    prepare_pretrained(ModelOptions(pretrained_model_path=str(snapshot)), place / "made")
    assert (place / "made/vae/weights").read_text() == "weights"
    assert not (place / "made/vae/weights").is_symlink()
