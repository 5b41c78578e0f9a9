"""How many nodes a training takes of a cluster, and what jobs ask for."""

import json
from pathlib import Path

import pytest

from helpers.projects import changed, write
from omnitune.config import ExperimentOptions
from omnitune.config.workflow import Cluster
from omnitune.planning.host import (
    EXTRA_MINUTES,
    UNKNOWN_MINUTES,
    training_memory_mb,
    training_minutes,
    training_threads,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("cluster", "processes", "nodes"),
    [
        (Cluster(), 8, 1),
        (Cluster(gpus_per_node=8), 8, 1),
        (Cluster(gpus_per_node=8), 32, 4),
        (Cluster(gpus_per_node=8), 12, 2),
        (Cluster(gpus_per_node=8), 9, 3),
        (Cluster(gpus_per_node=8), 13, 13),
        (Cluster(nodes=4, gpus_per_node=8), 16, 4),
        (Cluster(nodes=2), 2, 2),
    ],
)
def test_nodes_have_equally_many_processes(cluster: Cluster, processes: int, nodes: int) -> None:
    assert cluster.nodes_for(processes) == nodes


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(nodes=3), "16 processes cannot be spread equally"),
        (Cluster(nodes=1, gpus_per_node=8), "have GPUs for 8 processes, not for 16"),
    ],
)
def test_what_cannot_be_is_refused(cluster: Cluster, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster.nodes_for(16)


def test_jobs_ask_for_what_a_training_is_known_to_need(tmp_path: Path) -> None:
    train = {"max_train_steps": 1000, "dataloader_num_workers": 6}
    options = ExperimentOptions.model_validate(changed(train=train))
    assert training_threads(options, 8) == 56
    assert training_memory_mb(options, tmp_path, 8) == 4000 + 8 * (2000 + 6 * 500)
    metrics = tmp_path / "metrics.jsonl"
    assert training_minutes(options, metrics) == UNKNOWN_MINUTES
    write(metrics, json.dumps({"step": 400, "loss": 1.0, "seconds": 60.0}) + "\n")
    assert training_minutes(options, metrics) == 900 + EXTRA_MINUTES
