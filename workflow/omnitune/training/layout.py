"""How processes share a training: which strategy, and how many of them hold one copy of the parameters."""

import json
import logging
from dataclasses import dataclass

import torch

from omnitune.config import ExperimentOptions
from omnitune.config.training import TrainOptions
from omnitune.launcher import Topology
from omnitune.training.files import TrainingFiles

logger = logging.getLogger("omnitune")

SHARDED = ("fsdp", "hsdp")


@dataclass(frozen=True)
class Layout:
    """How processes share a training, as the launcher has decided it.

    Attributes:
        strategy: single, ddp, fsdp or hsdp.
        world_size: processes on all nodes.
        shard_size: processes that hold one copy of the parameters between them.
        reason: why this strategy, where it was chosen and not asked for.
    """

    strategy: str
    world_size: int
    shard_size: int
    reason: str = ""


def choose_layout(options: ExperimentOptions, topology: Topology, files: TrainingFiles) -> Layout:
    """How the processes share the work; the same on every node.

    Args:
        options: train.parallelism and the keys beside it.
        topology: the processes.
        files: with starting weights and shards, by which `auto` estimates memory.

    Raises:
        ValueError: for what cannot work.
    """
    train, world_size = options.train, topology.world_size
    strategy, reason = "single" if world_size == 1 else str(train.parallelism), ""
    if strategy == "auto":
        strategy, reason = _fitting(options, topology, files)
        logger.info("train.parallelism: auto takes %s: %s", strategy, reason)
    if train.cpu_offload and (strategy not in SHARDED or not torch.accelerator.is_available()):
        raise ValueError(
            "train.cpu_offload: true needs several processes, train.parallelism fsdp or hsdp, and GPUs to offload from. "
            "Set it to false."
        )
    return Layout(strategy, world_size, shard_size_of(strategy, train, world_size, topology.nodes), reason)


def shard_size_of(strategy: str, train: TrainOptions, processes: int, nodes: int) -> int:
    """Processes that hold one copy of the parameters between them; raises ValueError where they make no replicas."""
    if strategy != "hsdp":
        return processes if strategy == "fsdp" else 1
    size = train.hsdp_shard_size or processes // nodes
    if not _makes_replicas(size, processes):
        raise ValueError(
            f"train.hsdp_shard_size: {size} is not allowed with {processes} processes on {nodes} node(s): they must make two or "
            "more replicas of equal size, each of two or more processes. Start several nodes, change it, or take "
            "train.parallelism: fsdp."
        )
    return size


def sharded_strategies(train: TrainOptions, processes: int, nodes: int) -> tuple[str, ...]:
    """The strategies that cut the parameters and are possible here, the one that exchanges less first."""
    size = train.hsdp_shard_size or processes // nodes
    return SHARDED[::-1] if nodes > 1 and _makes_replicas(size, processes) else ("fsdp",)


def _makes_replicas(size: int, processes: int) -> bool:
    return processes % size == 0 and 1 < size < processes


def _fitting(options: ExperimentOptions, topology: Topology, files: TrainingFiles) -> tuple[str, str]:
    """The strategy that `auto` stands for, by estimated memory, and why; imported here, as it builds the model's blocks."""
    from omnitune.data.index import ShardIndex
    from omnitune.training.estimate import choose_parallelism, device_memory, encoder_bytes_of
    from omnitune.training.workload import longest_batch

    return choose_parallelism(
        options,
        json.loads((files.transformer / "config.json").read_text(encoding="utf-8")),
        processes=topology.world_size,
        nodes=topology.nodes,
        device_bytes=device_memory(topology.processes_per_node),
        batch=longest_batch(options, ShardIndex.load(files.index), processes=topology.world_size),
        encoder_bytes=encoder_bytes_of(files.base, options),
    )
