"""What a saved checkpoint holds, and that nothing else is loaded for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from omnitune.checkpoints.average import WeightAverage
from omnitune.checkpoints.save import MODEL_FOLDER, OPTIMIZER_FOLDER, CheckpointSaver, load_checkpoint
from omnitune.checkpoints.states import TrainerState, read_state
from omnitune.distributed.parallel import SharedError
from omnitune.io.files import sha256_of
from omnitune.paths import STATE_FILE

pytestmark = pytest.mark.unit

IDENTITY: dict[str, Any] = {"options": {"train.learning_rate": 0.1}, "data": {}}


def test_saving_before_the_first_update_counts_none(tmp_path: Path) -> None:
    """Where all steps were skipped: the next one is the first, as in a training that did not save."""

    def trained(save: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if save:
            saver = CheckpointSaver(tmp_path, model, [optimizer], None, background=False, limit=None, keep=set())
            saver.save(TrainerState(1, IDENTITY, None))
            saver.complete()
            load_checkpoint(tmp_path / "checkpoint-1", model, [optimizer], None)
        for factor in (1.0, 3.0):
            (model(torch.ones(3)).square().sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))


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

    saver = CheckpointSaver(tmp_path, model, [optimizer], average, background=background, limit=None, keep=set())
    expected = {}
    for number in (1, 2):
        step()
        saver.save(TrainerState(number, IDENTITY, None, running={"skipped_steps": number}))
        expected[number] = [p.detach().clone() for p in (*model.parameters(), *average.average.values())]
        step()
        assert saver.pending
        assert not (tmp_path / f"checkpoint-{number}").exists()
        saver.complete()
    for number, values in expected.items():
        path = tmp_path / f"checkpoint-{number}"
        assert read_state(path).running == {"skipped_steps": number}
        load_checkpoint(path, model, [optimizer], average)
        found = [*model.parameters(), *average.average.values()]
        assert all(torch.equal(one, other) for one, other in zip(found, values, strict=True))


def saved(folder: Path) -> tuple[Path, torch.nn.Module, torch.optim.Optimizer]:
    """A checkpoint at step 1, and what was saved in it."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    saver = CheckpointSaver(folder, model, [optimizer], None, background=False, limit=None, keep=set())
    saver.save(TrainerState(1, IDENTITY, None))
    saver.complete()
    return folder / "checkpoint-1", model, optimizer


def test_a_checkpoint_knows_the_hash_of_each_of_its_files(tmp_path: Path) -> None:
    checkpoint, *_ = saved(tmp_path)
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    del files[STATE_FILE]
    assert {name.split("/")[0] for name in files} == {MODEL_FOLDER, OPTIMIZER_FOLDER}
    assert read_state(checkpoint).files == {name: sha256_of(files[name]) for name in sorted(files)}
    assert list(read_state(checkpoint).files) == sorted(files)


def test_missing_file_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint, model, optimizer = saved(tmp_path)
    next((checkpoint / MODEL_FOLDER).glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1/pytorch_model_fsdp_0/__0_0\.distcp: is missing\. Remove "):
        load_checkpoint(checkpoint, model, [optimizer], None)


def test_a_checkpoint_in_which_a_byte_was_changed_is_refused(tmp_path: Path) -> None:
    """Before anything of it is loaded, whichever of its files it is."""
    checkpoint, model, optimizer = saved(tmp_path)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for name in read_state(checkpoint).files:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SharedError, match=rf"checkpoint-1/{name}: is not what training has saved .* Remove "):
            load_checkpoint(checkpoint, model, [optimizer], None)
        (checkpoint / name).write_bytes(content)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    load_checkpoint(checkpoint, model, [optimizer], None)


def test_missing_file_of_a_checkpoint_without_hashes_is_named(tmp_path: Path) -> None:
    """Checkpoints of earlier versions have none."""
    checkpoint, model, optimizer = saved(tmp_path)
    state = {name: value for name, value in vars(read_state(checkpoint)).items() if name != "files"}
    (checkpoint / STATE_FILE).write_text(json.dumps(state))
    load_checkpoint(checkpoint, model, [optimizer], None)
    next((checkpoint / MODEL_FOLDER).glob("*.distcp")).unlink()
    with pytest.raises(SharedError, match=r"checkpoint-1/pytorch_model_fsdp_0: cannot be read, a file is missing"):
        load_checkpoint(checkpoint, model, [optimizer], None)
