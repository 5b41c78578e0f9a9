"""How processes share a training: which strategy, and how many of them hold one copy of the parameters."""

import logging
from dataclasses import dataclass

import torch

from omnitune.config import ExperimentOptions
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
    if world_size == 1:
        return Layout("single", 1, 1)
    strategy, reason = train.parallelism, ""
    if strategy == "auto":
        strategy, reason = _fitting(options, topology, files)
        logger.info("train.parallelism: auto takes %s: %s", strategy, reason)
    if strategy == "hsdp":
        size = train.hsdp_shard_size or topology.processes_per_node
        if world_size % size or size == world_size:
            raise ValueError(
                f"train.hsdp_shard_size: {size} is not allowed with {world_size} processes: they must make "
                "two or more replicas of equal size. Start several nodes, change it, or take train.parallelism: fsdp."
            )
        return Layout(strategy, world_size, size, reason)
    if train.cpu_offload and (strategy == "ddp" or not torch.accelerator.is_available()):
        raise ValueError("train.cpu_offload: true needs train.parallelism fsdp or hsdp, and a GPU to offload from.")
    return Layout(strategy, world_size, 1 if strategy == "ddp" else world_size, reason)
