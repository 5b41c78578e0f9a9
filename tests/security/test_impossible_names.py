"""Names that no file can have, in every file that names others: a sentence, where Path would raise or a disk would."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from omnitune.config import Benchmark, ExperimentOptions, load_config
from omnitune.config.experiment.options import DataOptions
from omnitune.config.mixtures.sources import read_mixture
from omnitune.config.workflow import WorkflowConfig
from omnitune.evaluation.judges.judgements import read_labels
from omnitune.evaluation.prompts import read_instructions, read_prompts
from omnitune.io.places import is_local
from omnitune.paths import MAX_FILE_BYTES, MAX_NAME_BYTES, names_folder, path_problem
from omnitune.validation.heldout import read_heldout_rows

pytestmark = pytest.mark.unit

IMPOSSIBLE = {
    "long": ("x" * 256 + ".jsonl", "is too long"),
    "long in bytes": ("\u00e9" * 128 + "/a.jsonl", "is too long"),
    "many": ("x/" * 1100 + "a.jsonl", "is too long"),
    "nul": ("a\0b.jsonl", "NUL byte"),
    "half": ("a\ud800.jsonl", "half of a character|lone surrogate|found invalid Unicode"),
}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, content: object) -> Path:
    """A .yml, or a .jsonl of one line."""
    text = json.dumps(content)  # of which YAML reads the escapes as well
    Path(name).write_text(text if name.endswith("yml") else f"{text}\n")
    return Path(name)


def mixture(name: str) -> object:
    return read_mixture(written("mix.yml", {"data": [{"path": name}]}))


def pattern(name: str) -> object:
    return read_mixture(written("mix.yml", {"data": [{"path": f"{name}/*.jsonl"}]}))


def inner(name: str) -> object:
    return read_mixture(written("mix.yml", {"data": [{"path": f"{name}.yml"}]}))


def options(section: str, key: str, name: str) -> object:
    return load_config(written("o.yml", {"name": "a", section: {key: name}}), ExperimentOptions)


def extends(name: str) -> object:
    return ExperimentOptions.load(written("o.yml", {"name": "a", "extends": name}))


def workflow(key: str, name: str) -> object:
    return load_config(written("config.yml", {"experiments": ["o.yml"], key: [name]}), WorkflowConfig)


def image_of(read: Callable[[Path], object], name: str) -> object:
    row = {"key": "a", "task_type": "edit", "instruction": "b", "input_images": [name], "output_image": "b.png"}
    return read(written("prompts.jsonl", row))


def label(name: str) -> object:
    return read_labels(written("labels.jsonl", {"image": name}))


READERS: dict[str, Callable[[str], Any]] = {
    "mixture": mixture,
    "pattern": pattern,
    "mixture in a mixture": inner,
    "benchmark": lambda name: load_config(written("b.yml", {"prompts": name}), Benchmark),
    "baseline": lambda name: load_config(written("b.yml", {"prompts": "p.jsonl", "baselines": {"a": name}}), Benchmark),
    "extends": extends,
    "experiments": partial(workflow, "experiments"),
    "benchmarks": partial(workflow, "benchmarks"),
    "weights": lambda name: is_local(name, "model.pretrained_model_path"),
    "prompts": partial(image_of, lambda path: read_prompts(Benchmark(prompts=str(path)), Path())),
    "list": partial(image_of, read_instructions),
    "held-out": partial(image_of, lambda path: read_heldout_rows(path, 8)),
    "labels": label,
    **{
        f"{section}.{key}": partial(options, section, key)
        for section, keys in {
            "data": ("data_path", "image_root", "source_root"),
            "model": ("pretrained_model_path", "transformer_path", "pretrained_vae_model_name_or_path"),
            "val": ("data_path",),
            "train": ("lora_path",),
        }.items()
        for key in keys
    },
}


@pytest.mark.parametrize("kind", list(IMPOSSIBLE))
@pytest.mark.parametrize("reader", list(READERS))
def test_a_name_that_no_file_has_is_a_sentence(reader: str, kind: str) -> None:
    name, problem = IMPOSSIBLE[kind]
    with pytest.raises(ValueError, match=f"{problem}|which is no file") as error:
        READERS[reader](name)
    assert len(str(error.value)) < 5000 and "Errno" not in str(error.value)


URLS_TOO = {"mixture", "pattern", "mixture in a mixture", "extends", "prompts", "list", "held-out", "labels"}
URLS_TOO |= {"data.image_root", "data.source_root"}  # where other code says what it reads


@pytest.mark.parametrize("reader", sorted(READERS.keys() - URLS_TOO))
def test_a_url_for_a_path_is_a_sentence(reader: str) -> None:
    with pytest.raises(ValueError, match=r"https://host/x+\S* .*is a URL: download what is there") as error:
        READERS[reader](f"https://me:secret@host/{'x' * 300}.yml")
    names = {"benchmark": "prompts", "baseline": "baselines", "weights": "model.pretrained_model_path"}
    assert names.get(reader, reader) in str(error.value)
    assert "secret" not in str(error.value)


def test_names_that_files_can_have_pass() -> None:
    for name in ("x" * MAX_FILE_BYTES, "a/b", "\u732b.jsonl", "a\udce9", f"https://host/a?b={'x' * 300}", ""):
        assert path_problem(name) is None
    Path("x" * MAX_FILE_BYTES).touch()


def test_what_names_folders_leaves_room_for_what_is_put_around_it() -> None:
    """Locks and temporary files: a stem of 250 bytes is a file, and no name of a data set, benchmark or experiment."""
    assert names_folder("x" * MAX_NAME_BYTES) and not names_folder("\u00e9" * (MAX_NAME_BYTES // 2 + 1))
    with pytest.raises(ValueError, match=f"at most {MAX_NAME_BYTES} bytes"):
        DataOptions(data_path=f"{'x' * 250}.yml")
    with pytest.raises(ValueError, match=f"at most {MAX_NAME_BYTES} characters"):
        load_config(written("o.yml", {"name": "x" * 161, "data": {"data_path": "a.yml"}}), ExperimentOptions)
    assert yaml.safe_load(Path("o.yml").read_text())["name"] == "x" * 161
