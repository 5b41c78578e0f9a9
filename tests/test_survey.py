"""Files that no rule declares: which of them are lost or others now, and what makes them again."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.projects import changed, project, sha256, write
from omnitune import survey
from omnitune.survey import lost_files

pytestmark = pytest.mark.unit

CHECKPOINT = Path("experiments/x/checkpoint-10")
CONVERTED = CHECKPOINT / "transformer"
EVALUATION = Path("experiments/x/evaluation/10/b1")
ENCODED = Path("prepared/mix/encoded/demo")
BASE = Path("resources/pretrained/demo")
WRITTEN, LATER = 1_000_000_000, 1_000_000_100  # times of change, in seconds


def leave(path: Path, text: str, at: int = WRITTEN) -> None:
    os.utime(write(path, text), (at, at))


@pytest.fixture(autouse=True)
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a finished run has left in the working directory, as far as it is looked at."""
    monkeypatch.chdir(tmp_path)
    leave(BASE / "vae/model.safetensors", "vae")
    leave(BASE / "manifest.json", json.dumps({"vae/model.safetensors": sha256("vae")}))
    leave(ENCODED / "a-00000.tar", "tar 0")
    leave(ENCODED / "a-00001.tar", "tar 01")
    write(ENCODED / "groups/.keep", "")
    table = pa.table({"tar": ["a-00000.tar", "a-00000.tar", "a-00001.tar"], "tar_bytes": [5, 5, 6]})
    pq.write_table(table, ENCODED / "groups/a-0000.parquet")
    for step in (5, 10):
        leave(Path(f"experiments/x/checkpoint-{step}/trainer_state.json"), "{}")
    leave(Path("experiments/x/train.json"), json.dumps({"checkpoints": [5, 10]}))
    leave(CONVERTED / "config.json", "{}")
    leave(CONVERTED / "model.safetensors", "weights")
    files = {name: (CONVERTED / name).read_text() for name in ("config.json", "model.safetensors")}
    facts = {name: {"sha256": sha256(text), "bytes": len(text)} for name, text in files.items()}
    leave(CONVERTED / "conversion.json", json.dumps({"files": facts}))
    leave(EVALUATION / "images/k.png", "image")
    row = {"key": "k", "image": "images/k.png", "sha256": sha256("image")}
    leave(EVALUATION / "generations.jsonl", json.dumps(row) + "\n")


def lost(experiments: int = 1) -> list[str]:
    options = changed(data={"encode": True}, train={"max_train_steps": 10}, logger={"checkpointing_steps": 5})
    contents = [{**options, "name": name} for name in ("x", "y")[:experiments]]
    return lost_files(project(Path(), *contents, benchmarks=("b1",)))


def test_of_a_whole_project_nothing_is_lost() -> None:
    assert lost() == []
    assert lost(experiments=2) == [], "what has not been made yet is not lost"


def test_before_the_first_run_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "new" / "here", "")
    monkeypatch.chdir(tmp_path / "new")
    assert lost() == []


MISSING = {
    BASE / "vae/model.safetensors": (
        f"is missing, which {BASE}/manifest.json names. To make it again: "
        f"snakemake --cores 2 --force {BASE}/manifest.json"
    ),
    ENCODED / "a-00001.tar": (
        f"is missing, which {ENCODED}/groups/a-0000.parquet says. To make it again: "
        f"snakemake --cores 2 --force {ENCODED}/groups/a-0000.parquet"
    ),
    CONVERTED / "model.safetensors": (
        f"is missing, which {CONVERTED}/conversion.json names. To make it again: "
        f"snakemake --cores 2 --force {CONVERTED}/conversion.json"
    ),
    EVALUATION / "images/k.png": (
        f"is missing, which {EVALUATION}/generations.jsonl names. To draw it again: "
        f"snakemake --cores 2 --force {EVALUATION}/parts/*.jsonl"
    ),
}


@pytest.mark.parametrize("path", MISSING, ids=lambda path: path.name)
def test_a_missing_file_is_named_with_what_makes_it_again(path: Path) -> None:
    path.unlink()
    assert lost() == lost(experiments=2) == [f"{path} {MISSING[path]}"]


def test_a_checkpoint_without_its_state_is_named() -> None:
    for step in (5, 10):
        Path(f"experiments/x/checkpoint-{step}/trainer_state.json").unlink()
    assert lost() == [
        f"experiments/x/checkpoint-{step}: its training state is missing, which experiments/x/train.json names. What "
        "is converted stays. To train up to it again: rm experiments/x/train.json; snakemake --cores 2 train"
        for step in (5, 10)
    ]


SIZED = [ENCODED / "a-00001.tar", CONVERTED / "model.safetensors"]
HASHED = [BASE / "vae/model.safetensors", CONVERTED / "model.safetensors", EVALUATION / "images/k.png"]


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_another_size_is_seen_whatever_the_time(path: Path) -> None:
    leave(path, "much more than it was", at=WRITTEN - 100)
    [line] = lost()
    assert line.startswith(f"{path} has another size than ") and "--force" in line


@pytest.mark.parametrize("path", HASHED, ids=lambda path: path.name)
def test_a_younger_file_of_other_content_is_seen(path: Path) -> None:
    content = path.read_text()
    leave(path, content, at=LATER)
    assert lost() == [], "touched, and what it was"
    leave(path, content[:-1] + "X", at=LATER)
    [line] = lost()
    assert line.startswith(f"{path} was changed after it was written (its SHA-256 is not what ") and "--force" in line


@pytest.mark.parametrize("path", HASHED, ids=lambda path: path.name)
def test_large_files_are_left_to_whoever_loads_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "HASHED_BYTES", 2)
    leave(path, path.read_text()[:-1] + "X", at=LATER)
    assert lost() == []


def test_a_base_that_two_experiments_share_is_named_once() -> None:
    (BASE / "vae/model.safetensors").unlink()
    assert len(lost(experiments=2)) == 1


DECLARED = [
    BASE / "manifest.json",
    ENCODED / "groups/a-0000.parquet",
    Path("experiments/x/train.json"),
    CONVERTED / "conversion.json",
    EVALUATION / "generations.jsonl",
]


@pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.name)
def test_what_a_rule_declares_is_left_to_snakemake(path: Path) -> None:
    path.unlink()
    assert lost() == []


@pytest.mark.parametrize("text", ["{", "3"])
@pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.name)
def test_a_file_that_cannot_be_read_stops_nothing(path: Path, text: str) -> None:
    """It is named, and Snakemake, which calls this before any job, goes on."""
    leave(path, text)
    [line] = lost()
    assert line.startswith(f"{path} cannot be read (")
    assert line.endswith(f"To make it again: snakemake --cores 2 --force {path}")
