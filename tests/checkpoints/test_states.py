"""Checkpoints as they lie on disk: which stay, which are gone on from, and whether they are what was saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.projects import sha256, write
from omnitune.checkpoints.states import (
    TrainerState,
    check_files,
    find_resumable,
    list_checkpoints,
    newest_state,
    read_state,
    remove_leftovers,
    remove_superfluous,
    require_steps,
)
from omnitune.paths import STATE_FILE

pytestmark = pytest.mark.unit

IDENTITY: dict[str, Any] = {"options": {"train.learning_rate": 0.1}, "data": {}}


def save(folder: Path, step: int, scheduled: bool = True, identity: dict[str, Any] = IDENTITY) -> Path:
    """A checkpoint that holds nothing beside its state."""
    path = folder / f"checkpoint-{step}"
    write(path / STATE_FILE, json.dumps(vars(TrainerState(step, identity, None, scheduled))))
    return path


def steps(folder: Path) -> list[int]:
    return list(list_checkpoints(folder))


def test_limit_keeps_the_newest_and_those_to_evaluate(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    remove_superfluous(tmp_path, 1, {20})
    assert steps(tmp_path) == [20, 40]
    remove_superfluous(tmp_path, None, set())
    assert steps(tmp_path) == [20, 40]


def test_checkpoint_of_a_stopped_training_goes_when_a_newer_one_is_there(tmp_path: Path) -> None:
    for step, scheduled in ((10, True), (13, False)):
        save(tmp_path, step, scheduled)
    remove_superfluous(tmp_path, 1, set())
    assert steps(tmp_path) == [10, 13], "the newest stays, and it is none of those that are counted"
    save(tmp_path, 20)
    remove_superfluous(tmp_path, 2, set())
    assert steps(tmp_path) == [10, 20]


def test_what_a_killed_save_has_left_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "checkpoint-15").mkdir()
    save(tmp_path, 20).rename(tmp_path / "checkpoint-20.tmp")
    assert steps(tmp_path) == [10]
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-15"]


def test_checkpoints_of_another_training_are_set_aside(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    write(tmp_path / "logs" / "metrics.jsonl", "old")
    assert find_resumable(tmp_path, last_step=20, same=True) == tmp_path / "checkpoint-20"
    assert steps(tmp_path) == [10, 20]
    assert find_resumable(tmp_path, last_step=20, same=False) is None
    assert steps(tmp_path) == [] and steps(tmp_path / "superseded-1") == [10, 20]
    assert (tmp_path / "superseded-1" / "logs" / "metrics.jsonl").read_text() == "old"
    save(tmp_path, 5)
    assert find_resumable(tmp_path, last_step=20, same=False) is None
    assert steps(tmp_path / "superseded-2") == [5]


ATTEMPT = ["logs/metrics.jsonl", "options.yml", "train.json", "report/index.html", "evaluation/20/b/scores.json"]
ATTEMPT += ["evaluation/20-ema/b/images/k.png", "checkpoint-20/transformer/conversion.json"]


def test_all_of_an_attempt_is_set_aside_together(tmp_path: Path) -> None:
    """The evaluation of what it started from is not of the attempt; the new one's identity is there already."""
    save(tmp_path, 20)
    kept = ["evaluation/0/b/scores.json", "identity.json", "evaluation/.lock"]
    for name in (*ATTEMPT, *kept):
        write(tmp_path / name, name)
    assert find_resumable(tmp_path, last_step=20, same=False) is None
    old = tmp_path / "superseded-1"
    assert all((old / name).read_text() == name and not (tmp_path / name).exists() for name in ATTEMPT)
    assert all((tmp_path / name).is_file() for name in kept)
    assert len([path for path in old.rglob("*") if path.is_file()]) == len(ATTEMPT) + 1


def test_what_was_made_of_checkpoints_beyond_the_end_goes_with_them(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
        write(tmp_path / f"evaluation/{step}/b/scores.json", "")
    write(tmp_path / "evaluation/20-ema/b/scores.json", "")
    write(tmp_path / "report/index.html", "")
    assert find_resumable(tmp_path, last_step=10, same=True) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["10"]
    assert sorted(path.name for path in (tmp_path / "superseded-1/evaluation").iterdir()) == ["20", "20-ema"]
    assert (tmp_path / "superseded-1/report/index.html").is_file()


def test_a_training_without_checkpoints_begins(tmp_path: Path) -> None:
    for same in (True, False):
        assert find_resumable(tmp_path, last_step=20, same=same) is None
    assert not list(tmp_path.iterdir())
    assert newest_state(tmp_path) is None


def test_fewer_steps_than_before(tmp_path: Path) -> None:
    """What lies beyond them is neither gone on from nor counted as the newest."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert find_resumable(tmp_path, last_step=25, same=True) == tmp_path / "checkpoint-20"
    assert steps(tmp_path) == [10, 20] and steps(tmp_path / "superseded-1") == [30]
    save(tmp_path, 25)
    remove_superfluous(tmp_path, 1, set())
    assert steps(tmp_path) == [25]


def test_checkpoints_to_evaluate_must_be_there(tmp_path: Path) -> None:
    save(tmp_path, 10)
    require_steps(tmp_path, [10])
    with pytest.raises(ValueError, match=r"evaluate_checkpoints asks for step 5, 15, .*checkpointing_steps"):
        require_steps(tmp_path, [5, 10, 15])


def test_damaged_state_is_named(tmp_path: Path) -> None:
    incomplete = json.dumps(vars(TrainerState(10, {"base": "b"}, None)))
    listed = json.dumps(vars(TrainerState(10, {"options": [], "data": {}}, None)))
    for text in ("{", '{"step": 10}', incomplete, listed, "[" * 100_000, "\xff"):
        write(save(tmp_path, 10) / STATE_FILE, text)
        with pytest.raises(ValueError, match=r"trainer_state\.json: damaged .*Remove .*checkpoint-10 to go on"):
            newest_state(tmp_path)
        with pytest.raises(ValueError, match=r"trainer_state\.json: damaged"):
            remove_superfluous(tmp_path, 1, set())


def test_the_newest_checkpoint_speaks_for_all(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step, identity={**IDENTITY, "base": step})
    state = newest_state(tmp_path)
    assert state is not None and (state.step, state.identity["base"]) == (100, 100)


def test_an_identity_of_the_older_form_is_read_as_one_of_today(tmp_path: Path) -> None:
    older = {
        "options": {"name": "x", "seed": 3, "train": {"learning_rate": 0.1, "parameter_groups": None}},
        "base": "b",
        "starting_weights": [["model.safetensors", 9]],
        "data": {"index": "ab" * 32, "mixture": {"a": 1.0}},
    }
    options = {"name": "x", "seed": 3, "train.learning_rate": 0.1, "train.parameter_groups": None}
    state = read_state(save(tmp_path, 10, identity=older))
    assert state.identity == {"options": options, "base": "b"}
    assert state.files == {}
    today = {
        **older,
        "starting_weights": "ab",
        "options": options,
        "data": {"a": {"ratio": 1.0, "samples": 3, "sha256": "c"}},
    }
    assert read_state(save(tmp_path, 20, identity=today)).identity == today


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 10)
    names = ["model_0/.metadata", "model_0/__0_0.distcp", "optimizer_0/__0_0.distcp"]
    for name in names:
        write(checkpoint / name, name)
    state = TrainerState(10, IDENTITY, None, files={name: sha256(name) for name in names})
    check_files(checkpoint, state, names)
    write(checkpoint / names[1], "model_0/__0_0.distcq")
    check_files(checkpoint, state, [names[0], names[2]])
    with pytest.raises(
        ValueError, match=r"checkpoint-10/model_0/__0_0\.distcp: is not what training has saved"
    ) as error:
        check_files(checkpoint, state, names)
    assert f"Remove {checkpoint}; training goes on from an earlier checkpoint" in str(error.value)
    (checkpoint / names[1]).unlink()
    with pytest.raises(ValueError, match=r"model_0/__0_0\.distcp: is missing\. Remove .*checkpoint-10;"):
        check_files(checkpoint, state, names)
