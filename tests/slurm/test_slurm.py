"""The DAG on a real SLURM with two nodes: training across both gives the weights of two local processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cluster import missing_programs, slurm_cluster
from safetensors.torch import load_file
from tiny import write_tiny
from workplace import Workplace

pytestmark = pytest.mark.slurm

WEIGHTS = "experiments/tiny/checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
PROFILE = ["--workflow-profile", "workflow/profiles/slurm"]
TWO_NODES = ["--set-resources", "train_experiment:nodes=2", "train_experiment:tasks=2"]


def test_training_across_two_nodes(new_workplace: Callable[[str], Workplace], tmp_path: Path) -> None:
    assert missing_programs() == [], "type tests/install-system-packages.sh"
    place = new_workplace("slurm")
    write_tiny(place.root)
    small = ["--default-resources", "slurm_account=none", "slurm_partition=debug", "mem_mb=1000", "runtime=30"]
    fast = [
        "--slurm-init-seconds-before-status-checks",
        "1",
        "--seconds-between-status-checks",
        "1",
        "--latency-wait",
        "5",
    ]
    with slurm_cluster(tmp_path / "slurm") as environment:
        done = place.run("snakemake", *PROFILE, *TWO_NODES, *small, *fast, environment=environment, timeout=900)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    train = json.loads((place.root / "experiments/tiny/train.json").read_text())
    assert (train["world_size"], train["strategy"]) == (2, "fsdp")
    log = (place.root / "logs/train_experiment/tiny.log").read_text()
    assert "srun --nodes 2" in log
    assert "strategy fsdp, 2 processes" in log
    assert (place.root / "experiments/tiny/report/index.html").is_file()

    on_slurm = load_file(place.root / WEIGHTS)
    for folder in ("experiments", "logs"):
        (place.root / folder).rename(place.root / f"{folder}-slurm")
    place.snakemake("convert")
    local = load_file(place.root / WEIGHTS)
    assert on_slurm.keys() == local.keys()
    assert all(torch.equal(on_slurm[name], local[name]) for name in local)
