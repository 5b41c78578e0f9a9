"""Hours on GPUs that somebody has measured steps of full size on. Of others nothing is foretold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.model import ArchOptions
from omnitune.flops import peak_flops


@dataclass(frozen=True)
class Measured:
    """Shares of a GPU's dense bf16 peak that `omnitune train` has reached on one: with a LoRA, with all parameters."""

    lora: float
    whole: float


# benchmarks/RESULTS.md: encoded data, bf16, every block recomputed, not compiled. Of LoRA, the mean of two sizes.
MEASURED = {"H200": Measured(lora=0.19, whole=0.236)}


@dataclass(frozen=True)
class GpuHours:
    """Hours of a training on GPUs of one kind, at a share of their peak that was measured."""

    gpu: str
    hours: float
    share: float


def measured_hours(
    options: ExperimentOptions, config: Mapping[str, Any], step_flops: float, processes: int
) -> list[GpuHours]:
    """Hours by kind of GPU; none for trainings that differ from what was measured in what decides their speed.

    Args:
        options: of the experiment.
        config: of the transformer.
        step_flops: of an average step, forward and backward, over all processes.
        processes: each on a GPU of its own; the time in which they wait for each other is not in the hours.
    """
    train, published = options.train, ArchOptions.model_validate({})
    alike = all(config.get(key) == getattr(published, key) for key in ("hidden_size", "num_layers"))
    if not alike or train.mixed_precision != "bf16" or not train.gradient_checkpointing or train.cpu_offload:
        return []
    found = []
    for gpu, measured in MEASURED.items():
        share, peak = measured.lora if train.lora_ft else measured.whole, peak_flops(gpu, torch.bfloat16)
        assert peak
        seconds = step_flops * train.max_train_steps / (share * peak * processes)
        found.append(GpuHours(gpu, seconds / 3600, share))
    return found
