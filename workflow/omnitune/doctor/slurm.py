"""What SLURM has and allows, against what the config asks it for."""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omnitune.config.workflow import Cluster
from omnitune.doctor.findings import Finding, answer_of
from omnitune.doctor.machine import file_system_of
from omnitune.project import Project

SHORTEST_JOB_AGE = 120  # seconds that squeue must know of finished jobs, which the profile asks every 40
LOCAL_FILE_SYSTEMS = {"ext4", "xfs", "btrfs", "overlay"}


@dataclass(frozen=True)
class Partition:
    """A partition as scontrol describes it, with the largest of its nodes.

    Attributes:
        name: of it.
        default: whether jobs go there that name none.
        up: whether it takes jobs.
        minutes: its time limit; None without one.
        nodes: how many it has.
        cpus, gpus: of its largest node.
        gpu_types: that its nodes have.
    """

    name: str
    default: bool
    up: bool
    minutes: int | None
    nodes: int
    cpus: int
    gpus: int
    gpu_types: frozenset[str]


def check_slurm(project: Project) -> Iterator[Finding]:
    """Partitions and limits, where this is a cluster's login node."""
    if shutil.which("sinfo") is None:
        yield Finding("note", "SLURM", "not on this machine")
        return
    shown, sizes = answer_of("scontrol", "--oneliner", "show", "partition"), answer_of("sinfo", *SIZES)
    if shown is None or sizes is None:
        yield Finding(
            "problem", "SLURM", "sinfo and scontrol do not answer: the controller is down, or this is no login node"
        )
        return
    partitions = {found.name: found for found in parse_partitions(shown, sizes)}
    names = ", ".join(f"{name} ({found.nodes} nodes)" for name, found in partitions.items())
    yield Finding("ok", "SLURM", f"partitions: {names}")
    yield from check_partitions(partitions, project.cluster, project)
    age = re.search(r"MinJobAge\s*=\s*(\d+)", answer_of("scontrol", "show", "config") or "")
    if age and int(age[1]) < SHORTEST_JOB_AGE:
        text = f"squeue forgets jobs after {age[1]} s: set slurm-status-command: sacct in the profile"
        yield Finding("problem", "SLURM", text)
    kind = file_system_of(Path.cwd())
    if kind in LOCAL_FILE_SYSTEMS:
        yield Finding("note", "shared files", f"{Path.cwd()} is on {kind}: nodes must see it under the same path")


SIZES = ("--noheader", "--Node", "--format", "%R|%c|%G")


def parse_partitions(shown: str, sizes: str) -> Iterator[Partition]:
    """Partitions.

    Args:
        shown: by `scontrol --oneliner show partition`.
        sizes: name of the partition, CPUs and GRES of each node, by sinfo.
    """
    nodes: dict[str, list[tuple[int, int, frozenset[str]]]] = {}
    for line in sizes.splitlines():
        name, cpus, gres = line.strip().split("|", 2)
        kinds = re.findall(r"\bgpu(?::([A-Za-z][\w.-]*))?:(\d+)", gres)
        types = frozenset(kind for kind, _ in kinds if kind)
        nodes.setdefault(name, []).append((int(cpus), sum(int(count) for _, count in kinds), types))
    for line in shown.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found = nodes.get(fields.get("PartitionName", ""), [])
        if "PartitionName" in fields:
            yield Partition(
                name=fields["PartitionName"],
                default=fields.get("Default") == "YES",
                up=fields.get("State") == "UP",
                minutes=minutes_of(fields.get("MaxTime", "UNLIMITED")),
                nodes=int(fields.get("TotalNodes", "0")),
                cpus=max((cpus for cpus, _, _ in found), default=0),
                gpus=max((gpus for _, gpus, _ in found), default=0),
                gpu_types=frozenset[str]().union(*(types for _, _, types in found)),
            )


def minutes_of(limit: str) -> int | None:
    """A time limit such as 1-00:00:00 in minutes; None for one that is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return (24 * days + hours) * 60 + minutes


def check_partitions(partitions: dict[str, Partition], cluster: Cluster, project: Project) -> Iterator[Finding]:
    """What the config asks for and its partitions do not have."""
    default = next((name for name, found in partitions.items() if found.default), None)
    asked = {"gpu_partition": cluster.gpu_partition, "download_partition": cluster.download_partition}
    for key, name in asked.items():
        if name and name not in partitions:
            yield Finding("problem", "SLURM", f"{key}: {name!r} is no partition; there are {', '.join(partitions)}")
    training = partitions.get((cluster.gpus_per_node and cluster.gpu_partition) or default or "")
    if training is None:
        if default is None:
            yield Finding(
                "note", "SLURM", "no default partition: set slurm_partition in the profile's default-resources"
            )
        return
    problems = list(_lacks(training, cluster, project))
    for text in problems:
        yield Finding("problem", "SLURM", text)
    if not problems:
        limit = f"{training.minutes} minutes" if training.minutes else "no time limit"
        text = (
            f"trainings go to {training.name}: {training.nodes} nodes of up to {training.cpus} CPUs and "
            f"{training.gpus} GPUs"
        )
        yield Finding("ok", "SLURM", f"{text}, {limit}")


def _lacks(found: Partition, cluster: Cluster, project: Project) -> Iterable[str]:
    if not found.up:
        yield f"partition {found.name} takes no jobs now"
    if cluster.gpus_per_node > found.gpus:
        yield (
            f"gpus_per_node: {cluster.gpus_per_node}, and nodes of {found.name} have {found.gpus}: jobs would never "
            "start"
        )
    if cluster.gpus_per_node and cluster.gpu_type and cluster.gpu_type not in found.gpu_types:
        yield (
            f"gpu_type: {cluster.gpu_type!r} is not in {found.name}; it has "
            f"{', '.join(sorted(found.gpu_types)) or 'no names'}"
        )
    if found.cpus and (cluster.cpus_per_node or 0) > found.cpus:
        yield f"cpus_per_node: {cluster.cpus_per_node}, and nodes of {found.name} have {found.cpus}"
    if found.minutes and (cluster.max_runtime is None or cluster.max_runtime > found.minutes):
        yield (
            f"max_runtime: {cluster.max_runtime or 'none'}, and {found.name} ends jobs after {found.minutes} minutes: "
            f"longer ones are refused. Set max_runtime: {found.minutes}"
        )
    try:
        needed = {name: cluster.nodes_for(options.train.num_processes) for name, options in project.experiments.items()}
    except ValueError:  # said of the config
        return
    for name, nodes in needed.items():
        if nodes > found.nodes:
            yield f"training {name} takes {nodes} nodes, and {found.name} has {found.nodes}"
