"""The same numbers whatever a training runs on and whatever interrupts it."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from helpers.trainings import (
    TRAINED,
    difference,
    kill,
    largest_difference,
    log_of,
    ranks,
    rows,
    start_training,
    tensors,
    train,
    wait_for,
    write_options,
)
from helpers.workplace import Workplace
from omnitune.checkpoints.states import list_checkpoints

pytestmark = pytest.mark.workflow

LAYOUTS = {
    "accumulated": {"batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},  # fsdp
    "fsdp4": {"batch_size": 2, "gradient_checkpointing": True, "gradient_checkpointing_every": 2},
    "hsdp4": {"batch_size": 2, "parallelism": "hsdp", "hsdp_shard_size": 2},
    "auto4": {"batch_size": 2, "parallelism": "auto"},  # which takes ddp
}
KILLED = {"max_train_steps": 45, "batch_size": 4, "ema_decay": 0.9, "lr_scheduler": "cosine", "max_restarts": 100}
KILLS = int(os.environ.get("OMNITUNE_KILLS", "2"))
# (while a checkpoint is written or at a random moment, one process or all), as often as KILLS says, in turn
KINDS = {
    "foreground": [(True, "one"), (False, "all")],
    "background": [(True, "all"), (False, "one")],
}


@pytest.fixture(scope="module")
def single(mixed: Workplace) -> Workplace:
    """Where a training of one process has run; others go on there."""
    train(mixed, "single", train={"batch_size": 8})
    return mixed


@pytest.mark.parametrize("name", LAYOUTS)
def test_loss_curve_of_any_layout(single: Workplace, name: str) -> None:
    output = train(single, name, train=LAYOUTS[name])
    processes = 8 // (LAYOUTS[name]["batch_size"] * LAYOUTS[name].get("gradient_accumulation_steps", 1))
    strategy = LAYOUTS[name].get("parallelism", "fsdp").replace("auto", "ddp")
    assert f"strategy {strategy}, {processes} processes" in output
    assert ("train.parallelism: auto takes ddp: ddp needs" in output) == (name == "auto4")
    assert difference(rows(single, "single"), rows(single, name)) < 1e-5
    assert difference(rows(single, "single"), rows(single, name), "grad_norm") < 1e-4


def test_lora_dropout_belongs_to_samples(mixed: Workplace) -> None:
    keys = {"lora_ft": True, "lora_dropout": 0.2, "lora_use_dora": True}
    one = train(mixed, "lora1", start=TRAINED, train={**keys, "batch_size": 8})
    train(mixed, "lora2", start=TRAINED, train={**keys, "batch_size": 4, "gradient_checkpointing": True})
    assert "adapters only" in one
    assert difference(rows(mixed, "lora1"), rows(mixed, "lora2")) < 1e-5
    train(mixed, "without", start=TRAINED, train={**keys, "lora_dropout": 0.0, "batch_size": 8})
    assert difference(rows(mixed, "lora1"), rows(mixed, "without")) > 1e-4


def test_resume_at_another_world_size(single: Workplace) -> None:
    """Weights, optimizer and all: within 1e-6 of one that was never stopped."""
    train(single, "moved", train={"batch_size": 8, "max_train_steps": 10})
    output = train(single, "moved", train={"batch_size": 4})
    assert "going on from experiments/moved/checkpoint-10" in output
    folder = single.root / "experiments"
    first, second = (tensors(folder / name / "checkpoint-20") for name in ("single", "moved"))
    weights = [name for name in first if name.startswith("pytorch_model")]
    assert weights
    for name in weights:
        assert float((first[name] - second[name]).abs().max()) < 1e-6 + 1e-5 * float(first[name].abs().max()), name


@pytest.fixture(scope="module")
def uninterrupted(mixed: Workplace) -> Path:
    """The last checkpoint of a training that nothing interrupts."""
    train(mixed, "uninterrupted", train=KILLED)
    return mixed.root / "experiments/uninterrupted/checkpoint-45"


def newest(folder: Path) -> int:
    """Step of the newest whole checkpoint; 0 without any."""
    return max(list_checkpoints(folder), default=0)


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is being written; what a kill has left of one is removed at the next start."""
    return any(int(path.stem.split("-")[1]) > newest(folder) for path in folder.glob("checkpoint-*.tmp"))


@pytest.mark.parametrize("saves", KINDS)
def test_killed_again_and_again(mixed: Workplace, uninterrupted: Path, saves: str) -> None:
    """At random moments and while a checkpoint is written: one process, which restarts by itself, or all."""
    name = f"killed_{saves}"
    keys = {**KILLED, "async_checkpoint": saves == "background"}
    write_options(mixed, name, train=keys, logger={"checkpointing_steps": 3})
    folder = mixed.root / f"experiments/{name}"
    chance = random.Random(name)
    process = start_training(mixed, name)
    kills = 0
    for number in range(KILLS):
        inside, victims = KINDS[saves][number % 2]
        before = newest(folder)
        alive = wait_for(lambda before=before: newest(folder) > before, process)
        if not (alive and (not inside or wait_for(lambda: is_saving(folder), process))):
            break
        time.sleep(chance.uniform(0, 0.05 if inside else 0.5))
        found = ranks(mixed, name)
        kills += bool(found)
        if victims == "one" and found:
            kill(chance.choice(found))
            began = time.monotonic()
            wait_for(lambda found=found: not set(found) & set(ranks(mixed, name)), process)
            assert time.monotonic() - began < 10, "the other processes live on"
        else:
            kill(process.pid)
            process.wait()
            wait_for(lambda: not ranks(mixed, name), Endless())
            process = start_training(mixed, name)
    assert process.wait(timeout=240) == 0, log_of(mixed, name)[-4000:]
    assert kills == KILLS
    assert log_of(mixed, name).count("going on from") == KILLS
    assert [row["step"] for row in rows(mixed, name)] == list(range(1, KILLED["max_train_steps"] + 1))
    assert largest_difference(folder / uninterrupted.name, uninterrupted) == 0
    assert not list(folder.glob("*.tmp"))


class Endless:
    """A process that never ends."""

    def poll(self) -> None:
        """Nothing, as it runs."""


def test_asked_to_stop(mixed: Workplace, uninterrupted: Path) -> None:
    """By either signal: saves after its step, leaves with a code of its own, and goes on as if nothing had been."""
    name, step = "asked", 0
    write_options(mixed, name, train=KILLED)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start_training(mixed, name)
        assert wait_for(lambda before=step: len(rows(mixed, name)) >= before + 9, process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
        step = len(rows(mixed, name))
        assert step < 45
        assert (mixed.root / f"experiments/{name}/checkpoint-{step}/trainer_state.json").is_file()
        assert not (mixed.root / f"experiments/{name}/train.json").exists()
    assert log_of(mixed, name).count("was asked to stop and has saved") == 2
    assert start_training(mixed, name).wait(timeout=240) == 0
    assert f"going on from experiments/{name}/checkpoint-{step}" in log_of(mixed, name)
    assert largest_difference(mixed.root / f"experiments/{name}/checkpoint-45", uninterrupted) == 0
