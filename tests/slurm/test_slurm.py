"""A real SLURM with two nodes: training across both, one job in two goes, gives the weights of two local processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.cluster import missing_programs, slurm_cluster
from helpers.system_packages import need
from helpers.tiny import write_tiny
from helpers.workplace import Workplace

pytestmark = pytest.mark.slurm

STEPS = 24
WEIGHTS = f"experiments/tiny/checkpoint-{STEPS}/transformer/diffusion_pytorch_model.safetensors"
PROFILE = ["--workflow-profile", "workflow/profiles/slurm"]
TWO_NODES = ["--config", "nodes=2", "gpus_per_node=1", "save_seconds=60"]
SMALL = ["--default-resources", "slurm_account=none", "slurm_partition=debug", "mem_mb=1000", "runtime=30"]
FAST = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5"]


def end_time(place: Workplace, environment: dict[str, str], process: subprocess.Popen[bytes]) -> int:
    """Signals the training's job as SLURM does before its time is up; gives the job's number."""
    deadline = time.monotonic() + 500
    while not (place.root / "experiments/tiny/checkpoint-4/trainer_state.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline, (place.root / "output").read_text()[-6000:]
        time.sleep(0.1)
    command = ["squeue", "--noheader", "--states", "RUNNING", "--format", "%i"]
    (job,) = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    [status] = json.loads(place.run("omnitune", "status", "--json", environment=environment).stdout)
    assert (status["stage"], status["state"], status["running"]) == ("train", "running", 1)
    subprocess.run(["scancel", "--signal=USR1", job], env=environment, check=True)
    return int(job)


def shown(job: int, environment: dict[str, str]) -> dict[str, str]:
    """What SLURM knows of a job."""
    command = ["scontrol", "--oneliner", "show", "job", str(job)]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


@pytest.mark.timeout(1800)  # beside other work, too
def test_training_across_two_nodes(workplace: Workplace) -> None:
    """All but a tar of the data is there already."""
    need(missing_programs())
    place = workplace
    for folder in ("experiments", "logs"):
        shutil.rmtree(place.root / folder)
    (place.root / "prepared/tiny/shards/edit-00000.tar").unlink()
    write_tiny(place.root, max_train_steps=STEPS)
    with slurm_cluster() as environment, (place.root / "output").open("w") as output:
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = ["snakemake", *PROFILE, *TWO_NODES, *SMALL, *FAST]
        process = subprocess.Popen(command, cwd=place.root, env=environment, stdout=output, stderr=output)
        try:
            job = end_time(place, environment, process)
            process.wait(timeout=600)
            known = shown(job, environment)
        finally:
            process.kill()
        doctor = place.run("salloc", "--nodes=2", "omnitune", "doctor", environment=environment)
    text = (place.root / "output").read_text()
    assert process.returncode == 0, text[-6000:]
    assert "Trying to restart job" not in text
    assert (known["Restarts"], known["NumNodes"], known["TresPerNode"]) == ("1", "2", "gres:gpu:1")
    train = json.loads((place.root / "experiments/tiny/train.json").read_text())
    assert (train["world_size"], train["strategy"]) == (2, "fsdp")
    log = (place.root / "logs/train_experiment/tiny.log").read_text()
    assert "srun --overlap --nodes 2" in log
    assert "strategy fsdp, 2 processes" in log
    assert "going on from experiments/tiny/checkpoint-" in log
    assert (place.root / "prepared/tiny/shards/edit-00000.tar").is_file()
    assert (place.root / "experiments/tiny/report/index.html").is_file()
    assert "trainings go to debug: 2 nodes of up to 4 CPUs and 2 GPUs, no time limit" in doctor.stdout
    assert "all see the project, and sum over all with gloo at" in doctor.stdout
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr

    on_slurm = load_file(place.root / WEIGHTS)
    for folder in ("experiments", "logs"):
        (place.root / folder).rename(place.root / f"{folder}-slurm")
    place.snakemake("convert")
    local = load_file(place.root / WEIGHTS)
    assert on_slurm.keys() == local.keys()
    assert all(torch.equal(on_slurm[name], local[name]) for name in local)
