"""Learning rate schedules: pure functions of the update, so that nothing of them needs saving."""

import math
from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from omnitune.config.choices import SCHEDULES
from omnitune.config.training import TrainOptions

Rate = Callable[[int], float]  # of each update, counted from 0


def learning_rate_schedule(train: TrainOptions) -> Rate:
    """The learning rate of each update."""
    schedule: Rate = SCHEDULES[train.lr_scheduler].load()(train)
    return schedule


def peak_learning_rate(train: TrainOptions) -> float:
    """The configured learning rate, times the global batch if scale_lr."""
    return train.learning_rate * (train.global_batch_size if train.scale_lr else 1)


def timm_constant_with_warmup(train: TrainOptions) -> Rate:
    """A linear warm-up, then the peak."""
    peak = peak_learning_rate(train)
    return lambda update: _warmup(update, peak, train) if update < train.warmup_t else peak


def timm_cosine(train: TrainOptions) -> Rate:
    """A linear warm-up, one half cosine from the peak to lr_min, then lr_min (timm's schedule with one cycle)."""
    peak = peak_learning_rate(train)
    offset = train.warmup_t if train.warmup_prefix else 0
    length = train.t_initial or max(train.max_train_steps - offset, 1)

    def rate(update: int) -> float:
        if update < train.warmup_t:
            return _warmup(update, peak, train)
        progress = min((update - offset) / length, 1.0)
        return train.lr_min + 0.5 * (peak - train.lr_min) * (1 + math.cos(math.pi * progress))

    return rate


def _warmup(update: int, peak: float, train: TrainOptions) -> float:
    return train.warmup_lr_init + update * (peak - train.warmup_lr_init) / train.warmup_t


def of_diffusers(train: TrainOptions) -> Rate:
    """The schedule of that name in diffusers.optimization."""
    peak = peak_learning_rate(train)
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(
        train.lr_scheduler,
        probe,
        num_warmup_steps=train.lr_warmup_steps,
        num_training_steps=train.max_train_steps,
        num_cycles=train.lr_num_cycles,
        power=train.lr_power,
        step_rules=train.lr_step_rules,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda update: peak * factor(update)
