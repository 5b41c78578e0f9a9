"""What a plan is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnitune.config import ExperimentOptions
from omnitune.config.mixtures.sources import Source
from omnitune.distributed.layout import shard_size_of
from omnitune.flops import SampleTokens
from omnitune.planning.disk import DiskSpace
from omnitune.planning.memory import MemoryEstimate, estimate_memory
from omnitune.planning.samples import AssumedSamples
from omnitune.planning.workload import Workload, read_workload
from omnitune.sharding.index import ShardIndex


@dataclass(frozen=True)
class Machine:
    """Where a training is to run.

    Attributes:
        processes: on all nodes.
        nodes: how many.
        device: "cuda" or "cpu".
        device_bytes: memory of one process's device.
    """

    processes: int
    nodes: int
    device: str
    device_bytes: int


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made from: no images and no weights.

    Attributes:
        options: of the experiment.
        config: of the transformer.
        samples: those of the shards, or assumed ones.
        sources: of the mixture.
        machine: where it is to run.
        encoder_bytes: of VAE and text encoder, where training encodes.
        weights: what is downloaded and copied before training.
    """

    options: ExperimentOptions
    config: dict[str, Any]
    samples: ShardIndex | AssumedSamples
    sources: Sequence[Source]
    machine: Machine
    encoder_bytes: int
    weights: Sequence[DiskSpace] = ()

    def workload(self, options: ExperimentOptions, processes: int) -> Workload:
        """What the data asks of a training with these options, which may differ from the experiment's."""
        return read_workload(options, self.samples, self.sources, processes=processes)

    def memory(
        self, options: ExperimentOptions, strategy: str, batch: Sequence[SampleTokens], processes: int
    ) -> MemoryEstimate:
        """Memory of a process of a training with these options, which may differ from the experiment's."""
        return estimate_memory(
            options,
            self.config,
            strategy=strategy,
            shard_size=shard_size_of(strategy, options.train, processes, self.machine.nodes),
            batch=batch,
            device=self.machine.device,
            encoder_bytes=0 if options.data.encode else self.encoder_bytes,
        )
