"""What the processes of a training add up at the beginning of a step, before they compute."""

from dataclasses import astuple, dataclass

import torch

from omnitune.distributed.parallel import sum_over_processes


@dataclass(frozen=True)
class StepTotals:
    """Figures of one process's part of a step, or their sums over all processes.

    Attributes:
        elements: latent elements of the targets, over which the loss is a mean.
        tokens: that the model computes on.
        flops: of forward and backward; 0 where the device's peak, which they are compared with, is not known.
        stopping: processes that were asked to stop.
        written: processes that have nothing left to write of the last checkpoint.
    """

    elements: float
    tokens: float
    flops: float
    stopping: float
    written: float

    def over_processes(self, device: torch.device) -> "StepTotals":
        """The sums over all processes, by one reduction on `device`; every process calls it."""
        own = torch.tensor(astuple(self), dtype=torch.float64, device=device)
        return StepTotals(*sum_over_processes(own).tolist())
