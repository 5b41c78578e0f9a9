"""Experiments that are renamed and removed: what they have made goes along, and stays what it was."""

import json
import os
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from helpers.projects import changed, project, write
from omnitune import upkeep
from omnitune.checkpoints import states
from omnitune.checkpoints.states import TrainerState
from omnitune.config import ExperimentOptions
from omnitune.evaluation.results import read_scores
from omnitune.io.files import is_whole, json_line, sealed, sha256_of
from omnitune.paths import STATE_FILE
from omnitune.pretrained.weights import weights_hash
from omnitune.project import Project
from omnitune.training.inputs import lock_experiment
from omnitune.upkeep import remove_experiment, rename_experiment

pytestmark = pytest.mark.unit

LATER = 1_000_000_000
WEIGHTS = {"transformer": "experiments/old/checkpoint-10/transformer", "base": "resources/pretrained/demo"}
LONG = "experiments/old/evaluation/10/" + "b" * 200 + "/scores.json"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(output: str, folder: str = "metadata", **content: Any) -> Path:
    """What Snakemake keeps of an output, where it does."""
    text = urlsafe_b64encode(output.encode()).decode()
    parts = [text[start : start + 254] for start in range(0, len(text), 254)]
    return write(Path(".snakemake", folder, *(f"@{part}" for part in parts[:-1]), parts[-1]), json.dumps(content))


def trained(name: str, **options: Any) -> None:
    """An experiment that has been trained and evaluated."""
    folder = Path(f"experiments/{name}")
    state = TrainerState(10, {"options": options, "base": None, "data": {}}, None)
    write(folder / "checkpoint-10" / STATE_FILE, json.dumps(vars(state)))
    write(folder / "train.json", json.dumps({"experiment": name, "final_step": 10}, indent=2))
    write(folder / "options.yml", changed(name=name))
    write(folder / "variant.yml", changed(name=name))
    write(
        folder / "checkpoint-10/transformer/conversion.json",
        json.dumps({"source": f"experiments/{name}/checkpoint-10", "files": {}}),
    )
    row = sealed({"key": "k", "image": "images/k.png", "weights": WEIGHTS})
    evaluation = folder / "evaluation/10/b"
    for path in ("generations.jsonl", "parts/0.jsonl"):
        write(evaluation / path, json_line(row))
    scores = sealed({"weights": WEIGHTS, "generations_sha256": sha256_of(evaluation / "generations.jsonl")})
    write(evaluation / "scores.json", json.dumps(scores))
    write(folder / "report/index.html", name)
    for path in folder.rglob("*"):
        os.utime(path, (LATER, LATER))


def test_all_that_an_experiment_has_made_goes_along() -> None:
    trained("old")
    train = record("experiments/old/train.json", input=["experiments/old/identity.json"])
    record(LONG, params=["'experiments/old/evaluation/0'"], log=["logs/old.log"])
    other = record("experiments/old_2/train.json", input=["experiments/old_2/identity.json"])
    loaded = project(Path(), changed(name="old"))
    options = write(
        Path("0.yml"), "# mine\nname: 'old'  # so far\n" + Path("0.yml").read_text().replace("name: old\n", "")
    )
    weights = weights_hash(Path("experiments/old/checkpoint-10/transformer"))
    rename_experiment(loaded, "old", "new")
    folder = Path("experiments/new")
    assert weights_hash(folder / "checkpoint-10/transformer") == weights, "by which scores know what was evaluated"
    assert not Path("experiments/old").exists()
    assert options.read_text().startswith("# mine\nname: 'new'  # so far\n")
    for file in (options, folder / "options.yml", folder / "variant.yml"):
        assert ExperimentOptions.load(file).name == "new"
    assert json.loads((folder / "train.json").read_text())["experiment"] == "new"
    scores = read_scores(folder / "evaluation/10/b")
    rows = [
        json.loads((folder / f"evaluation/10/b/{name}").read_text()) for name in ("generations.jsonl", "parts/0.jsonl")
    ]
    for content in (scores, *rows):
        assert is_whole(content)
        assert content["weights"] == {**WEIGHTS, "transformer": "experiments/new/checkpoint-10/transformer"}
    assert scores["generations_sha256"] == sha256_of(folder / "evaluation/10/b/generations.jsonl")
    assert {path.stat().st_mtime for path in folder.rglob("*") if path.is_file()} == {LATER}
    assert not (folder / "report").exists(), "it shows the old name, and is built again"
    assert not train.exists() and other.is_file()
    moved = record("experiments/new/train.json", input=["experiments/new/identity.json"]).read_text()
    assert json.loads(moved) == {"input": ["experiments/new/identity.json"]}
    paths = {path for path in Path(".snakemake/metadata").rglob("*") if path.is_file()}
    long = record(LONG.replace("/old/", "/new/"), params=["'experiments/new/evaluation/0'"], log=["logs/old.log"])
    assert long in paths and len(paths) == 3


def test_what_was_changed_by_hand_is_not_sealed_again() -> None:
    trained("old")
    path = Path("experiments/old/evaluation/10/b/scores.json")
    path.write_text(path.read_text().replace("resources/pretrained/demo", "elsewhere"))
    rename_experiment(project(Path(), changed(name="x")), "old", "new")
    with pytest.raises(ValueError, match=r"scores\.json: was changed after it was written"):
        read_scores(Path("experiments/new/evaluation/10/b"))


@pytest.mark.parametrize("content", [b"5\n", b"[" * 5_000, b"\xff\n"])
def test_what_is_damaged_stays_as_it_is(content: bytes) -> None:
    trained("old")
    files = ["scores.json", "generations.jsonl", "parts/0.jsonl"]
    for name in files:
        write(Path(f"experiments/old/evaluation/10/b/{name}"), "").write_bytes(content)
    rename_experiment(project(Path(), changed(name="x")), "old", "new")
    assert all(Path(f"experiments/new/evaluation/10/b/{name}").read_bytes() == content for name in files)


def test_a_folder_that_was_moved_by_hand_is_taken_over() -> None:
    trained("old")
    train = record("experiments/old/train.json")
    Path("experiments/old").rename("experiments/new")
    rename_experiment(project(Path(), changed(name="new")), "old", "new")
    assert json.loads(Path("experiments/new/train.json").read_text())["experiment"] == "new" and not train.exists()


def test_an_experiment_is_removed_with_what_is_known_of_it() -> None:
    trained("old")
    trained("other")
    kept = [record("experiments/other/train.json"), record("prepared/mix/shards/a.tar")]
    gone = record("experiments/old/train.json")
    remove_experiment(project(Path(), changed(name="other")), "old")
    assert [path.name for path in Path("experiments").iterdir()] == ["other"]
    assert not gone.exists() and all(path.is_file() for path in kept)


@pytest.mark.parametrize("written", ["scores.json", "generations.jsonl"])
def test_a_renaming_that_was_killed_is_ended_by_the_next(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("old")
    write_text = upkeep.write_text

    def killed(path: Path, text: str) -> None:
        write_text(path, text)
        if path.name == written:
            raise KeyboardInterrupt

    loaded = project(Path(), changed(name="x"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(upkeep, "write_text", killed)
        rename_experiment(loaded, "old", "new")
    rename_experiment(loaded, "old", "new")
    evaluation = Path("experiments/new/evaluation/10/b")
    assert read_scores(evaluation)["generations_sha256"] == sha256_of(evaluation / "generations.jsonl")
    assert "/old/" not in (evaluation / "scores.json").read_text() + (evaluation / "generations.jsonl").read_text()


def test_a_removal_that_was_killed_is_ended_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    trained("old")
    gone = record("experiments/old/train.json")

    def killed(path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(states, "remove_tree", killed)
        remove_experiment(project(Path(), changed(name="x")), "old")
    assert [path.name for path in Path("experiments").iterdir()] == ["old.removed.tmp"]
    remove_experiment(project(Path(), changed(name="x")), "old")
    assert not list(Path("experiments").iterdir()) and not gone.exists()


@pytest.mark.parametrize("new", ["new", None])
def test_what_a_killed_job_has_left_stays_known_as_incomplete(new: str | None) -> None:
    trained("old")
    left = record("experiments/old/train.json", "incomplete", external_jobid=None)
    loaded = project(Path(), changed(name="x"))
    rename_experiment(loaded, "old", new) if new else remove_experiment(loaded, "old")
    assert not left.exists()
    kept = [path for path in Path(".snakemake/incomplete").rglob("*") if path.is_file()]
    assert kept == ([record("experiments/new/train.json", "incomplete")] if new else [])


def test_what_variants_are_named_after_keeps_its_name() -> None:
    trained("old")
    loaded = project(Path(), changed(name="old"))
    swept = Project.load(
        {"experiments": ["0.yml"], "sweep": {"options": "0.yml", "set": {"train.learning_rate": [1e-5, 3e-5]}}}
    )
    with pytest.raises(ValueError, match=r"old is what the variants of the sweep are named after: .* all 2 of them"):
        rename_experiment(swept, "old", "new")
    assert Path("experiments/old").is_dir()
    rename_experiment(loaded, "old", "new")


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("../x", r"'\.\./x' is not allowed as a name"),
        ("other", r"'other' is the name of another experiment"),
        ("configured", r"'configured' is the name of another experiment"),
    ],
)
def test_names_that_are_not_free(new: str, message: str) -> None:
    trained("old")
    trained("other")
    with pytest.raises(ValueError, match=message):
        rename_experiment(project(Path(), changed(name="old"), changed(name="configured")), "old", new)
    assert Path("experiments/old").is_dir()


@pytest.mark.parametrize("name", [".", "..", "../prepared", "", "old/checkpoint-10"])
def test_nothing_but_an_experiment_is_removed(name: str) -> None:
    trained("old")
    write(Path("prepared/a"), "")
    with pytest.raises(ValueError, match="is not allowed as a name"):
        remove_experiment(project(Path(), changed(name="old")), name)
    assert Path("prepared/a").is_file() and Path("experiments/old/checkpoint-10").is_dir()


def test_what_holds_on_to_an_experiment_is_named() -> None:
    trained("old")
    loaded = project(Path(), changed(name="old", train={"max_train_steps": 10}))
    for act, verb in (
        (lambda: rename_experiment(loaded, "old", "new"), "renamed"),
        (lambda: remove_experiment(loaded, "old"), "removed"),
    ):
        start = "experiments/old/checkpoint-10/transformer"
        trained("follower", **{"model.pretrained_model_path": start})
        with pytest.raises(ValueError, match=rf"experiments/old cannot be {verb}: .* what follower starts from"):
            act()
        remove_experiment(loaded, "follower")
        after = changed(name="after", model={"pretrained_model_path": start})
        follows = project(Path(), changed(name="old", train={"max_train_steps": 10}), after)
        with pytest.raises(ValueError, match="what after starts from"):
            remove_experiment(follows, "old")
        lock = write(Path(".snakemake/locks/0.input.lock"), "")
        with pytest.raises(ValueError, match="Snakemake is running here"):
            act()
        lock.unlink()
        with (
            lock_experiment(Path("experiments/old")),
            pytest.raises(ValueError, match="another training is writing here"),
        ):
            act()
    with pytest.raises(ValueError, match=r"experiments/none: there is no such experiment; known: old"):
        remove_experiment(loaded, "none")
