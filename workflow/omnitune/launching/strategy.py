"""Which strategy a training takes: the one that is asked for, or for `auto` the one that fits."""

import logging

from omnitune.config import ExperimentOptions
from omnitune.distributed.layout import SHARDED, Layout, shard_size_of
from omnitune.distributed.processes import Topology
from omnitune.training.inputs import TrainingFiles

logger = logging.getLogger("omnitune")


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
    if train.cpu_offload and (strategy not in SHARDED or not _has_accelerator()):
        raise ValueError(
            "train.cpu_offload: true needs several processes, train.parallelism fsdp or hsdp, and GPUs to offload "
            "from. Set it to false."
        )
    return Layout(strategy, world_size, shard_size_of(strategy, train, world_size, topology.nodes), reason)


# A launcher of a training with a strategy of its own need not wait eight seconds for torch and the model's libraries.


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _fitting(options: ExperimentOptions, topology: Topology, files: TrainingFiles) -> tuple[str, str]:
    """The strategy that `auto` stands for, by estimated memory, and why."""
    from omnitune.planning.memory import choose_parallelism, device_memory, encoder_bytes_of
    from omnitune.planning.workload import longest_batch
    from omnitune.sharding.index import ShardIndex
    from omnitune.training.architecture import expected_architecture

    return choose_parallelism(
        options,
        expected_architecture(options, files.transformer),
        processes=topology.world_size,
        nodes=topology.nodes,
        device_bytes=device_memory(topology.processes_per_node),
        batch=longest_batch(options, ShardIndex.load(files.index), processes=topology.world_size),
        encoder_bytes=encoder_bytes_of(files.base, options),
    )
