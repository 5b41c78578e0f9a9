"""The average of the weights (train.ema_decay), kept while training and saved beside them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnitune.distributed.parallel import local_part


class WeightAverage:
    """Exponential moving average of the trained weights: average <- decay * average + (1 - decay) * weight.

    Cut over processes as the weights are, in their own float32.

    Args:
        weights: by name, as they are updated in place later.
        decay: train.ema_decay.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = dict(weights)
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimizer."""
        averages = [local_part(average) for average in self.average.values()]
        torch._foreach_lerp_(averages, [local_part(weight) for weight in self.weights.values()], 1 - self.decay)


def average_of(model: nn.Module, decay: float) -> WeightAverage | None:
    """The average of a model's trained weights, named as in the model before DDP wraps it; None for a decay of 0."""
    if not decay:
        return None
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return WeightAverage({name.removeprefix("module."): p for name, p in weights.items()}, decay)
