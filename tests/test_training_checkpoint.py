"""Which checkpoints stay, which are gone on from, and what a saved one holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from omnitune.training import checkpoint as checkpoints
from omnitune.training.optimizer import WeightAverage

pytestmark = pytest.mark.unit

IDENTITY = {"options": {"train": {"learning_rate": 0.1}}, "data": "a"}


def write(folder: Path, step: int, scheduled: bool = True, identity: dict[str, Any] = IDENTITY) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = checkpoints.TrainerState(step, identity, None, scheduled)
    (path / checkpoints.STATE_FILE).write_text(json.dumps(vars(state)))


def steps(folder: Path) -> list[int]:
    return list(checkpoints.list_checkpoints(folder))


def test_limit_keeps_the_newest_and_those_to_evaluate(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    checkpoints.remove_superfluous(tmp_path, 1, {20})
    assert steps(tmp_path) == [20, 40]
    checkpoints.remove_superfluous(tmp_path, None, set())
    assert steps(tmp_path) == [20, 40]


def test_checkpoint_of_a_stopped_training_goes_when_a_newer_one_is_there(tmp_path: Path) -> None:
    for step, scheduled in ((10, True), (13, False)):
        write(tmp_path, step, scheduled)
    checkpoints.remove_superfluous(tmp_path, 1, set())
    assert steps(tmp_path) == [10, 13], "the newest stays, and it is none of those that are counted"
    write(tmp_path, 20)
    checkpoints.remove_superfluous(tmp_path, 2, set())
    assert steps(tmp_path) == [10, 20]


def test_going_on_needs_the_same_options(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    assert checkpoints.find_resumable(tmp_path, IDENTITY, last_step=20) == tmp_path / "checkpoint-20"
    other = {"options": {"train": {"learning_rate": 0.2}}, "data": "b"}
    with pytest.raises(ValueError) as error:
        checkpoints.find_resumable(tmp_path, other, last_step=20)
    message = str(error.value)
    assert "options.train.learning_rate: 0.1 -> 0.2" in message and "data: 'a' -> 'b'" in message
    assert "superseded-1" in message
    assert steps(tmp_path) == [10, 20]
    assert checkpoints.find_resumable(tmp_path, other, last_step=20, start_over=True) is None
    assert steps(tmp_path) == [] and steps(tmp_path / "superseded-1") == [10, 20]


def test_starting_over_again_loses_nothing(tmp_path: Path) -> None:
    """A preempted training that was to start over goes on from what it has saved since."""
    write(tmp_path, 10)
    other = {**IDENTITY, "data": "b"}
    assert checkpoints.find_resumable(tmp_path, other, last_step=20, start_over=True) is None
    write(tmp_path, 5, identity=other)
    assert checkpoints.find_resumable(tmp_path, other, last_step=20, start_over=True) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "superseded-2").exists()


def test_fewer_steps_than_before(tmp_path: Path) -> None:
    """What lies beyond them is neither gone on from nor counted as the newest."""
    for step in (10, 20, 30):
        write(tmp_path, step)
    assert checkpoints.find_resumable(tmp_path, IDENTITY, last_step=25) == tmp_path / "checkpoint-20"
    assert steps(tmp_path) == [10, 20] and steps(tmp_path / "superseded-1") == [30]
    write(tmp_path, 25)
    checkpoints.remove_superfluous(tmp_path, 1, set())
    assert steps(tmp_path) == [25]


def test_checkpoints_to_evaluate_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, 10)
    checkpoints.require_steps(tmp_path, [10])
    with pytest.raises(ValueError, match=r"evaluate_checkpoints asks for step 5, 15, .*checkpointing_steps"):
        checkpoints.require_steps(tmp_path, [5, 10, 15])


def test_saving_before_the_first_update_counts_none(tmp_path: Path) -> None:
    """Where all steps were skipped: the next one is the first, as in a training that did not save."""

    def trained(save: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if save:
            saver = checkpoints.CheckpointSaver(
                tmp_path, model, [optimizer], None, background=False, limit=None, keep=set()
            )
            saver.save(checkpoints.TrainerState(1, IDENTITY, None))
            saver.complete()
            checkpoints.load_checkpoint(tmp_path / "checkpoint-1", model, [optimizer], None)
        for factor in (1.0, 3.0):
            (model(torch.ones(3)).square().sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))


def test_damaged_state_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / "checkpoint-10" / checkpoints.STATE_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state\.json: damaged"):
        checkpoints.find_resumable(tmp_path, IDENTITY, last_step=10)


@pytest.mark.parametrize("background", [False, True])
def test_saved_state_is_that_of_its_step(tmp_path: Path, background: bool) -> None:
    """Also where training goes on while it is written, and where the copy in memory is taken a second time."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(dict(model.named_parameters()), 0.5)

    def step() -> None:
        model(torch.ones(3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    saver = checkpoints.CheckpointSaver(
        tmp_path, model, [optimizer], average, background=background, limit=None, keep=set()
    )
    expected = {}
    for number in (1, 2):
        step()
        saver.save(checkpoints.TrainerState(number, IDENTITY, None, running={"skipped_steps": number}))
        expected[number] = [p.detach().clone() for p in (*model.parameters(), *average.average.values())]
        step()
        assert saver.pending
        assert not (tmp_path / f"checkpoint-{number}").exists()
        saver.complete()
    for number, values in expected.items():
        path = tmp_path / f"checkpoint-{number}"
        assert checkpoints.read_state(path).running == {"skipped_steps": number}
        checkpoints.load_checkpoint(path, model, [optimizer], average)
        found = [*model.parameters(), *average.average.values()]
        assert all(torch.equal(one, other) for one, other in zip(found, values, strict=True))


def test_missing_file_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    saver = checkpoints.CheckpointSaver(tmp_path, model, [optimizer], None, background=False, limit=None, keep=set())
    saver.save(checkpoints.TrainerState(1, IDENTITY, None))
    saver.complete()
    next((tmp_path / "checkpoint-1" / checkpoints.MODEL_FOLDER).glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1/pytorch_model_fsdp_0: cannot be read"):
        checkpoints.load_checkpoint(tmp_path / "checkpoint-1", model, [optimizer], None)
