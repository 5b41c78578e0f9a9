"""Wrong input and killed runs: one clear message, nothing lost, nothing half-written taken for whole."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny import write_tiny
from helpers.workplace import Workplace

pytestmark = pytest.mark.workflow

WEIGHTS = "experiments/tiny/checkpoint-12/transformer/diffusion_pytorch_model.safetensors"


def restart_training(workplace: Workplace) -> None:
    """Takes a finished run back to before its training."""
    for path in sorted((workplace.root / "experiments").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def kill_when(condition: Callable[[], bool], process: subprocess.Popen[str], victim: str) -> None:
    """Sends SIGKILL to the processes whose command line has `victim`, once the condition holds."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                inside = (entry / "cwd").resolve() == Path(process.args_cwd)  # type: ignore[attr-defined]
            except OSError:
                continue
            if victim in words and inside:
                os.kill(int(entry.name), signal.SIGKILL)


def start(workplace: Workplace, *arguments: str) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).parent / "snakemake")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [program, "--cores", "2", *arguments],
        cwd=workplace.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    process.args_cwd = str(workplace.root.resolve())  # type: ignore[attr-defined]
    return process


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("victim", ["omnitune.training", "snakemake"])
def test_killed_training_ends_with_the_same_weights(workplace: Workplace, finished: Workplace, victim: str) -> None:
    restart_training(workplace)
    folder = workplace.root / "experiments/tiny"
    process = start(workplace, "train")
    kill_when((folder / "checkpoint-4/trainer_state.json").is_file, process, victim)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (folder / "train.json").exists()
    time.sleep(2)  # orphans, if there were any, would go on writing
    assert not (folder / "checkpoint-12").exists()
    output = workplace.snakemake("convert", "--rerun-incomplete", *(["--nolock"] if victim == "snakemake" else []))
    assert "going on from experiments/tiny/checkpoint-" in output
    assert_same_weights(workplace.root / WEIGHTS, finished.root / WEIGHTS)


def test_killed_save_is_no_checkpoint(workplace: Workplace, finished: Workplace) -> None:
    restart_training(workplace)
    folder = workplace.root / "experiments/tiny"
    half = folder / "checkpoint-8.tmp" / "pytorch_model_fsdp_0"
    half.mkdir(parents=True)
    (half / "__0_0.distcp").write_bytes(b"half")
    output = workplace.snakemake("convert")
    assert "removing experiments/tiny/checkpoint-8.tmp" in output
    assert not half.exists()
    assert_same_weights(workplace.root / WEIGHTS, finished.root / WEIGHTS)


def test_wrong_config_stops_before_any_job(new_workplace: Callable[[str], Workplace]) -> None:
    place = new_workplace("wrong")
    write_tiny(place.root, learning_rat=1.0)
    done = place.run("snakemake", "--cores", "2")
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "config/options/tiny.yml: 1 problem" in output
    assert "train.learning_rat: unknown key. Did you mean 'learning_rate'?" in output
    assert "Traceback" not in output
    assert not (place.root / "resources").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "experiments=[]"], "experiments"),
        (["--config", 'experiments=["config/options/none.yml"]'], "config/options/none.yml: cannot be read"),
        (["--config", "experimets=[]"], "Did you mean 'experiments'?"),
    ],
)
def test_wrong_command_line_config(workplace: Workplace, arguments: list[str], expected: str) -> None:
    done = workplace.run("snakemake", "--cores", "2", "--dry-run", *arguments)
    assert done.returncode == 1
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_too_many_rejected_rows_fail_and_keep_the_ledger(workplace: Workplace) -> None:
    workplace.edit("config/options/tiny.yml", lambda c: c["data"].update(max_reject_fraction=0.001))
    output = workplace.snakemake("shard", ok=False)
    assert "data.max_reject_fraction" in output
    assert "Traceback" not in output
    ledger = workplace.root / "prepared/tiny/validation.failed/rejected.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert rows
    assert all({"file", "line", "reason", "message"} <= row.keys() for row in rows)


def test_image_changed_after_validation_is_named(workplace: Workplace) -> None:
    row = json.loads((workplace.root / "prepared/tiny/validation/shards/edit-00000.jsonl").read_text().splitlines()[0])
    image = workplace.root / row["output_image"]
    image.write_bytes(image.read_bytes() + b"x")
    (workplace.root / "prepared/tiny/shards/edit-00000.tar").unlink()
    output = workplace.snakemake("shard", ok=False)
    assert image.name in output
    assert "Traceback" not in output


def test_processes_that_do_not_fit(workplace: Workplace) -> None:
    done = workplace.run("omnitune", "train", "--config", "config/options/tiny.yml", "--num_processes", "3")
    assert done.returncode == 1
    assert "train.global_batch_size: 8 is not allowed" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_trainings_at_once(workplace: Workplace) -> None:
    with (workplace.root / "experiments/tiny/.train.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # what a running training holds
        second = workplace.run("omnitune", "train", "--config", "config/options/tiny.yml")
    assert second.returncode == 1
    assert "another training is writing here" in second.stderr
    assert "Traceback" not in second.stderr


def test_diverged_training_stops_and_says_so(workplace: Workplace) -> None:
    """In a message of its own: neither the launcher nor the processes add a traceback."""
    restart_training(workplace)
    workplace.edit("config/options/tiny.yml", lambda c: c["train"].update(learning_rate=1e30))
    output = workplace.snakemake("train", ok=False)
    assert "The training diverged and stops" in output
    assert "Traceback" not in output
    assert not (workplace.root / "experiments/tiny/train.json").exists()
    [status] = json.loads(workplace.run("omnitune", "status", "--json").stdout)
    assert (status["stage"], status["state"], status["failed"]) == ("train", "failed", 1)
    assert "The training diverged and stops" in status["notes"][0]


def test_without_resume_the_old_checkpoints_are_kept_aside(workplace: Workplace) -> None:
    workplace.edit("config/options/tiny.yml", lambda c: c.update(resume_from_checkpoint=None, seed=7))
    done = workplace.run("omnitune", "train", "--config", "config/options/tiny.yml")
    assert done.returncode == 0, done.stderr
    folder = workplace.root / "experiments/tiny"
    assert (folder / "superseded-1/checkpoint-12/trainer_state.json").is_file()
    assert (folder / "checkpoint-12/trainer_state.json").is_file()
    assert len((folder / "logs/metrics.jsonl").read_text().splitlines()) == 12


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_full_disk_leaves_the_last_checkpoint(workplace: Workplace) -> None:
    restart_training(workplace)
    experiments = workplace.root / "experiments"
    size = sum(f.stat().st_size for f in (workplace.root / "resources/pretrained/demo").rglob("*.safetensors"))
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={4 * size}", "tmpfs", str(experiments)]
    if subprocess.run(mounted, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        output = workplace.snakemake("train", ok=False)
        assert "cannot be written" in output and "No space left" in output
        assert "Traceback" not in output
        whole = [path.parent.name for path in experiments.glob("tiny/checkpoint-*/trainer_state.json")]
        assert "checkpoint-4" in whole
        assert "checkpoint-12" not in whole
    finally:
        subprocess.run(["umount", "--lazy", str(experiments)], check=True)
