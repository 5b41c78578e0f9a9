"""Names in a stranger's files: none runs in a shell, leads out of its folder or brings private files along."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from snakemake_interface_executor_plugins.utils import TargetSpec, encode_target_jobs_cli_args, format_cli_arg

from helpers.fuzzing import FUZZ
from helpers.pictures import picture
from helpers.projects import changed, project, write
from omnitune.config.experiment.model import ModelOptions
from omnitune.config.experiment.starts import model_name
from omnitune.errors import ConfigError
from omnitune.named_files import read_named_files
from omnitune.paths import SAFE_SIGNS, names_folder, require_safe
from omnitune.pretrained.files import PARTS
from omnitune.pretrained.prepare import prepare_pretrained
from omnitune.pretrained.transformer import parameter_names

pytestmark = pytest.mark.unit

ATTACKS = [
    "$(touch appeared)", "`touch appeared`", "a'; touch appeared; '", 'a" b', "a\\b", "a\nb", "a|b", "a&b",
    "{wildcard}", "a*b", "a;b", "~!$HOME", "'quoted'", "a\x00b",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipeline(folder: Path) -> Path:
    """Stands for a base model: files that nobody loads here."""
    for part in PARTS:
        write(folder / part / "config.json", "{}")
        write(folder / part / "model.safetensors", "\x02" + 7 * "\0" + "{}")  # of no tensors
    write(folder / "scheduler/scheduler_config.json", "{}")
    write(folder / "model_index.json", "{}")
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_no_sign_of_a_shell_reaches_a_job(name: str) -> None:
    with pytest.raises(ValueError, match=r"mix\.yml: the path .* is not allowed, for "):
        require_safe(f"/data/{name}.jsonl", "mix.yml")


def submitted(names: list[str], wildcard: str, folder: Path) -> list[str]:
    """What a job's own command gets as arguments, once a SLURM's `sbatch` has been called as the executor calls it.

    A shell on the login node reads the command with the job's in `--wrap="..."`, and one on the job's node reads that.
    """
    (folder / "sbatch").write_text('#!/bin/sh\nsh -c "${1#--wrap=}"\n')
    (folder / "python").write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word" >> words; done\n')
    for program in ("sbatch", "python"):
        (folder / program).chmod(0o755)
    target = encode_target_jobs_cli_args([TargetSpec("validate_source", {"dataset": wildcard})])
    words = [format_cli_arg("--target-jobs", target), format_cli_arg("--wait-for-files", names)]
    job = f"python {' '.join(words)}".replace('"', '\\"')
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(f'sbatch --wrap="{job}"', shell=True, cwd=folder, env=environment, check=False, capture_output=True)
    found = folder / "words"
    return found.read_text().split("\0")[:-1] if found.exists() else []


@pytest.mark.parametrize("name", ["$(touch appeared)", "`touch appeared`", "'a'; touch appeared; 'b'"])
def test_names_that_are_refused_would_run(tmp_path: Path, name: str) -> None:
    """So that the tests beside this one mean something."""
    submitted([name], "a", tmp_path)
    assert (tmp_path / "appeared").exists()


NASTY = [
    "a (2) --snakefile b",
    "~root/(touch appeared)",
    "a=(touch appeared)",
    "[a-z]/%s@,+:",
    "x -- --config y",
    ".",
    "é図",
]


@FUZZ
@given(
    name=st.sampled_from(NASTY)
    | st.text(st.characters(categories=["L", "M", "N"]) | st.sampled_from(SAFE_SIGNS), min_size=1)
)
def test_names_that_are_allowed_come_through_two_shells_unchanged(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    try:
        require_safe(name, "mix.yml")
    except ValueError:
        return
    folder = tmp_path_factory.mktemp("slurm")
    wildcard = "".join(letter for letter in name if names_folder(f"a{letter}")) or "a"
    assert submitted([name, "b"], wildcard, folder) == [
        "--target-jobs", f"validate_source:dataset={wildcard}", "--wait-for-files", name, "b"
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["python", "sbatch", "words"]


@pytest.mark.parametrize(
    "name",
    [
        "猫/图.jsonl",
        "Ünï/çé.jsonl",
        "e\u0301.jsonl",
        "हिन्दी.jsonl",
        "ไทยดี.jsonl",
        "my data (2)/a-b_c+d=e,f@1.0%.jsonl",
        "../a/[1].png",
    ],
)
def test_usual_names_in_any_script_are_safe(name: str) -> None:
    require_safe(name, "mix.yml")


def test_a_name_is_no_option_of_a_command() -> None:
    with pytest.raises(ValueError, match="'-' at its beginning"):
        require_safe("--config.jsonl", "mix.yml")


@pytest.mark.parametrize("path", ["...yml", "$(touch appeared).yml", "a b.yml", "..yml", "-x.yml", "a\u200bb.yml"])
def test_a_mixture_names_a_folder_of_its_own(place: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="names folders"):
        project(place, changed(data={"data_path": path}))


def test_a_data_set_is_named_in_any_script(place: Path) -> None:
    write(place / "數據-1.yml", {"data": [{"path": "猫.jsonl"}]})
    assert list(project(place, changed(data={"data_path": "數據-1.yml"})).sources["數據-1"]) == ["猫"]


HOSTILE = "$(touch appeared)"


def mixture_of(path: str, file: str = "a.jsonl", mixture: str = "mix.yml") -> dict[str, object]:
    """Options with a mixture that names this path, where this file lies."""
    write(Path(file), "")
    write(Path(mixture), {"data": [{"path": path}]})
    return changed(data={"data_path": mixture})


def transformer_at(path: str) -> str:
    """A folder that is whole, as its headers say."""
    write(Path(path, "config.json"), '{"num_layers": 1, "num_refiner_layers": 1}')
    tensors = dict.fromkeys(parameter_names({"num_layers": 1, "num_refiner_layers": 1}), np.zeros(1, np.float32))
    save_file(tensors, Path(path, "diffusion_pytorch_model.safetensors"))
    return path


def adapter_at(path: str) -> dict[str, object]:
    save_file({"a": np.zeros(1, np.float32)}, write(Path(path), ""))
    return changed(train={"lora_ft": True, "lora_path": path})


def base_with(path: str, named: str = "base") -> dict[str, object]:
    write(pipeline(Path(named)) / path, "")
    return changed(model={"pretrained_model_path": named})


PLACES: dict[str, Callable[[], dict[str, object]]] = {
    "a .jsonl file": lambda: mixture_of(f"{HOSTILE}.jsonl", f"{HOSTILE}.jsonl"),
    "a .jsonl file that is not there yet": lambda: mixture_of(f"{HOSTILE}.jsonl"),
    "a .jsonl file in a folder": lambda: mixture_of("shared", f"shared/{HOSTILE}.jsonl"),
    "a folder": lambda: mixture_of(HOSTILE, f"{HOSTILE}/a.jsonl"),
    "a folder deep in a folder": lambda: mixture_of("shared", f"shared/{HOSTILE}/a.jsonl"),
    "a match of a pattern": lambda: mixture_of("sh*/*.jsonl", f"shared/{HOSTILE}.jsonl"),
    "a folder that a pattern matches": lambda: mixture_of("shared/**/a.jsonl", f"shared/{HOSTILE}/a.jsonl"),
    "a mixture's folder": lambda: mixture_of("a.jsonl", f"{HOSTILE}/a.jsonl", f"{HOSTILE}/mix.yml"),
    "a file of a base model": lambda: base_with(f"vae/deep/{HOSTILE}.json"),
    "a folder in a base model": lambda: base_with(f"mllm/{HOSTILE}/a.json"),
    "a base model's folder": lambda: base_with("vae/a.json", HOSTILE),
    "a transformer's folder": lambda: changed(model={"transformer_path": transformer_at(f"{HOSTILE}/weights")}),
    "an adapter": lambda: adapter_at(f"{HOSTILE}.safetensors"),
    "an adapter's folder": lambda: adapter_at(f"{HOSTILE}/pytorch_lora_weights.safetensors"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_no_path_into_the_graph_has_signs_of_a_shell(place: Path, kind: str) -> None:
    """Each kind of path that becomes an input of jobs is met before any job, whoever has named it."""
    options = PLACES[kind]()
    with pytest.raises(ValueError, match=r"the path '\S*\$\(touch appeared\)\S*' is not allowed, for '\$'"):
        read_named_files(project(place, options))
    assert not (place / "appeared").exists()


@pytest.mark.parametrize("folder", [HOSTILE, "."])
def test_images_of_prompts_have_no_signs_of_a_shell(place: Path, folder: str) -> None:
    """Neither in their own names nor in that of the folder that the prompts lie in."""
    name = "a.png" if folder == HOSTILE else f"{HOSTILE}.png"
    write(place / folder / "prompts.jsonl", "")
    picture(8, 8).save(place / folder / name)
    row = {"task_type": "edit", "instruction": "a", "key": "k", "input_images": [name]}
    write(place / folder / "prompts.jsonl", json.dumps(row) + "\n")
    found = project(place, changed(), benchmarks=("b",))
    found.benchmarks["b"] = found.benchmarks["b"].model_copy(update={"prompts": f"{folder}/prompts.jsonl"})
    with pytest.raises(ValueError, match=r"prompts\.jsonl: the path .*touch appeared"):
        read_named_files(found)


@pytest.mark.parametrize("key", ["experiment", "benchmark"])
def test_what_becomes_a_wildcard_has_no_signs_of_a_shell(place: Path, key: str) -> None:
    options, benchmarks = (changed(name=HOSTILE), ()) if key == "experiment" else (changed(), (HOSTILE,))
    with pytest.raises(ConfigError, match=r"touch appeared"):
        project(place, options, benchmarks=benchmarks)


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


def test_a_snapshot_of_a_download_cache_is_taken_over(place: Path) -> None:
    """Its files are links to blobs beside the snapshots: small ones are copied, the blobs of weights are linked."""
    snapshot = pipeline(place / "hub/snapshots/0123")
    write(place / "hub/blobs/ab", "{}")
    (snapshot / "vae/more.json").symlink_to("../../../blobs/ab")
    weights = next(snapshot.glob("vae/*.safetensors"))
    weights.rename(place / "hub/blobs/cd")
    weights.symlink_to("../../../blobs/cd")
    prepare_pretrained(ModelOptions(pretrained_model_path=str(snapshot)), place / "made")
    for name, blob in (("more.json", "ab"), (weights.name, "cd")):
        assert not (place / "made/vae" / name).is_symlink()
        assert (place / "made/vae" / name).samefile(place / "hub/blobs" / blob) == (blob == "cd")
