"""How processes share a training: which strategy, and how many of them hold one copy of the parameters."""

from dataclasses import dataclass

from omnitune.config.experiment.training import TrainOptions

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


def shard_size_of(strategy: str, train: TrainOptions, processes: int, nodes: int) -> int:
    """Processes that hold one copy of the parameters between them; raises ValueError where they make no replicas."""
    if strategy != "hsdp":
        return processes if strategy == "fsdp" else 1
    size = train.hsdp_shard_size or processes // nodes
    if not _makes_replicas(size, processes):
        raise ValueError(
            f"train.hsdp_shard_size: {size} is not allowed with {processes} processes on {nodes} node(s): they must "
            "make two or more replicas of equal size, each of two or more processes. Start several nodes, change it, "
            "or take train.parallelism: fsdp."
        )
    return size


def sharded_strategies(train: TrainOptions, processes: int, nodes: int) -> tuple[str, ...]:
    """The strategies that cut the parameters and are possible here, the one that exchanges less first."""
    size = train.hsdp_shard_size or processes // nodes
    return SHARDED[::-1] if nodes > 1 and _makes_replicas(size, processes) else ("fsdp",)


def _makes_replicas(size: int, processes: int) -> bool:
    return processes % size == 0 and 1 < size < processes
