"""The checkpoint that is converted is the one that training saved, or is named."""

import json
import threading
from pathlib import Path

import pytest

from helpers.projects import sha256, write
from omnitune.checkpoints.states import TrainerState
from omnitune.conversion.checkpoint import check_checkpoint, hashing_thread
from omnitune.io.files import sha256_of
from omnitune.paths import STATE_FILE

pytestmark = pytest.mark.unit

PARTS = {"pytorch_model_fsdp_0/.metadata": "m", "pytorch_model_fsdp_0/__0_0.distcp": "w", "ema_0/__0_0.distcp": "a"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments/x/checkpoint-3"
    for name, text in PARTS.items():
        write(folder / name, text)
    identity = {"options": {}, "data": {}}
    state = TrainerState(3, identity, None, files={name: sha256(text) for name, text in PARTS.items()})
    write(folder / STATE_FILE, json.dumps(vars(state)))
    return folder


def checked(checkpoint: Path, part: str) -> str | None:
    found, checks = check_checkpoint(checkpoint, part)
    for check in checks:
        check()
    return found


def test_a_whole_checkpoint_gives_the_hash_of_its_state(checkpoint: Path) -> None:
    found = sha256_of(checkpoint / STATE_FILE)
    assert checked(checkpoint, "pytorch_model_fsdp_0") == found
    write(checkpoint.parent / "train.json", json.dumps({"states": {"3": found, "9": "0"}}))
    assert checked(checkpoint, "ema_0") == found
    write(checkpoint.parent / "train.json", json.dumps({"checkpoints": [3]}))
    assert checked(checkpoint, "ema_0") == found, "manifests of earlier versions name no states"


def test_what_training_has_not_written_is_not_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-3/pytorch_model_fsdp.bin", "of the published code")
    assert checked(tmp_path / "checkpoint-3", "pytorch_model_fsdp_0") is None
    assert checked(tmp_path / "model.safetensors", "pytorch_model_fsdp_0") is None


def test_another_state_than_train_json_names_is_refused(checkpoint: Path) -> None:
    train = write(checkpoint.parent / "train.json", json.dumps({"states": {"3": "0" * 64}}))
    expected = rf"checkpoint-3: is not the checkpoint that {train} names .*rm {train}, then snakemake --cores 2 train"
    with pytest.raises(ValueError, match=expected):
        checked(checkpoint, "pytorch_model_fsdp_0")


def test_changed_bytes_of_the_part_are_refused(checkpoint: Path) -> None:
    write(checkpoint / "ema_0/__0_0.distcp", "b")
    checked(checkpoint, "pytorch_model_fsdp_0")
    for where, part in ((checkpoint, "ema_0"), (checkpoint / "ema_0", "pytorch_model_fsdp_0")):
        with pytest.raises(ValueError, match=r"ema_0/__0_0\.distcp: is not what training has saved"):
            checked(where, part)
    (checkpoint / "pytorch_model_fsdp_0/__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model_fsdp_0/__0_0\.distcp: is missing"):
        checked(checkpoint, "pytorch_model_fsdp_0")


def test_an_edited_state_is_refused_where_train_json_names_it(checkpoint: Path) -> None:
    """Its hashes could otherwise be changed along with the files that they are of."""
    train = {"states": {"3": sha256_of(checkpoint / STATE_FILE)}}
    write(checkpoint.parent / "train.json", json.dumps(train))
    state = json.loads((checkpoint / STATE_FILE).read_text())
    write(checkpoint / "ema_0/__0_0.distcp", "b")
    state["files"]["ema_0/__0_0.distcp"] = sha256("b")
    write(checkpoint / STATE_FILE, json.dumps(state))
    with pytest.raises(ValueError, match="is not the checkpoint that"):
        checked(checkpoint, "ema_0")


def test_metadata_are_looked_at_at_once_and_weights_when_asked(checkpoint: Path) -> None:
    write(checkpoint / "pytorch_model_fsdp_0/__0_0.distcp", "b")
    assert len(check_checkpoint(checkpoint, "pytorch_model_fsdp_0")[1]) == 2
    write(checkpoint / "pytorch_model_fsdp_0/.metadata", "b")
    with pytest.raises(ValueError, match=r"/\.metadata: is not what training has saved"):
        check_checkpoint(checkpoint, "pytorch_model_fsdp_0")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hashes_that_have_not_begun_are_left_out_after_an_error(error: type[BaseException]) -> None:
    begun, end = threading.Event(), threading.Event()

    def hashed() -> None:
        begun.set()
        assert end.wait(60)

    with pytest.raises(error), hashing_thread(wait=False) as thread:
        first, *others = [thread.submit(hashed) for _ in range(3)]
        assert begun.wait(60)
        raise error
    assert not first.done() and all(other.cancelled() for other in others)
    end.set()
    first.result(60)
