"""What `omnitune doctor` calls a problem: packages, disk and file system of this machine, and SLURM's own words."""

import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from helpers.projects import changed, project
from omnitune.config.workflow import Cluster
from omnitune.doctor import machine
from omnitune.doctor.machine import check_config, check_disk, check_file_system, check_packages
from omnitune.doctor.nodes import judge
from omnitune.doctor.slurm import Partition, check_partitions, minutes_of, parse_partitions

pytestmark = pytest.mark.unit

SHOWN = """\
PartitionName=cpu AllowGroups=ALL Default=YES MaxTime=UNLIMITED State=UP TotalCPUs=128 TotalNodes=2 DefMemPerCPU=500
PartitionName=gpu AllowGroups=ALL Default=NO MaxTime=1-00:00:00 State=UP TotalCPUs=256 TotalNodes=4
"""
SIZES = "cpu|64|(null)\ncpu|64|(null)\ngpu|64|gpu:a100:8(S:0-1)\ngpu|64|gpu:a100:4,gpu:v100:2\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(cluster: Cluster, root: Path, processes: int = 1) -> list[str]:
    found = {partition.name: partition for partition in parse_partitions(SHOWN, SIZES)}
    sizes = {"global_batch_size": processes, "batch_size": 1}
    checked = check_partitions(found, cluster, project(root, changed(train=sizes)))
    return [finding.text for finding in checked if finding.level == "problem"]


def test_partitions_are_read_as_slurm_writes_them() -> None:
    cpu, gpu = parse_partitions(SHOWN, SIZES)
    assert cpu == Partition("cpu", True, True, None, 2, 64, 0, frozenset())
    assert gpu == Partition("gpu", False, True, 1440, 4, 64, 8, frozenset({"a100", "v100"}))
    assert [minutes_of(limit) for limit in ("4:30:00", "2-00:00:00", "UNLIMITED")] == [270, 2880, None]


@pytest.mark.parametrize(
    ("keys", "processes", "expected"),
    [
        ({}, 1, ""),
        ({"gpus_per_node": 8, "gpu_partition": "gpu", "gpu_type": "a100", "max_runtime": 1440}, 32, ""),
        ({"gpus_per_node": 8}, 8, "gpus_per_node: 8, and nodes of cpu have 0"),
        ({"gpus_per_node": 8, "gpu_partition": "gpus"}, 8, "gpu_partition: 'gpus' is no partition; there are cpu, gpu"),
        ({"gpus_per_node": 8, "gpu_partition": "gpu"}, 8, "gpu ends jobs after 1440 minutes"),
        (
            {"gpus_per_node": 8, "gpu_partition": "gpu", "gpu_type": "h100", "max_runtime": 9},
            8,
            "'h100' is not in gpu; it has",
        ),
        ({"gpus_per_node": 8, "gpu_partition": "gpu", "max_runtime": 9}, 64, "takes 8 nodes, and gpu has 4"),
        ({"cpus_per_node": 96}, 1, "cpus_per_node: 96, and nodes of cpu have 64"),
        ({"download_partition": "net"}, 1, "download_partition: 'net' is no partition"),
    ],
)
def test_what_the_nodes_do_not_have(keys: dict, processes: int, expected: str, tmp_path: Path) -> None:
    found = problems(Cluster(**keys), tmp_path, processes)
    assert expected in "\n".join(found)
    assert bool(found) == bool(expected)


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in check_packages()] == ["ok"]
    monkeypatch.setattr(machine, "file_system_of", lambda folder: "ext4")
    assert [finding.level for finding in check_file_system()] == ["ok"]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(machine, "file_system_of", lambda folder: "tmpfs")
    assert [finding.level for finding in check_file_system()] == ["problem"]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(1e9))
    assert {finding.level for finding in check_disk()} == {"problem"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert any("snakemake-executor-plugin-slurm 0.0.1 is installed, wanted is ==" in f.text for f in check_packages())


def test_trainings_that_do_not_fit_are_said_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = project(tmp_path, changed(train={"global_batch_size": 4, "batch_size": 1}))
    object.__setattr__(found, "cluster", Cluster(nodes=3))
    monkeypatch.setattr(machine, "read_named_files", lambda project: None)
    [finding] = check_config(Path("config.yaml"), found)
    assert finding.level == "problem"
    assert "nodes: 3 is not allowed: 4 processes cannot be spread equally" in finding.text


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, "ok", "all see the project, and sum over all with nccl at 9.50 GB/s"),
        ({"sees": False}, "problem", "node2 does not see"),
        ({"error": "timed out"}, "problem", "node2 does not reach the others by nccl: timed out"),
        ({"clock": 60.0}, "problem", "the clock of node2 is +60 s"),
        (None, "problem", "1 of 2 nodes (node1, node2) answered. srun: error"),
    ],
)
def test_what_nodes_say(changes: dict | None, level: str, text: str) -> None:
    row = {"host": "node1", "sees": True, "clock": 0.1, "gpus": 8, "backend": "nccl", "error": ""}
    row["gigabytes_per_second"] = 9.5
    rows = [row] if changes is None else [row, {**row, "host": "node2", **changes}]
    output = os.linesep.join(["a module says hello", *map(json.dumps, rows)])
    found = list(judge(["node1", "node2"], output, "srun: error"))
    assert (found[0].level, text in found[0].text) == (level, True), found
