"""Optimizer and learning rate."""

import math
from collections.abc import Callable, Iterable

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from omnitune.config.training import TrainOptions


def build_optimizer(parameters: Iterable[nn.Parameter], train: TrainOptions) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters,
        lr=peak_learning_rate(train),
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.adam_weight_decay,
        eps=train.adam_epsilon,
        fused=True,
    )


def peak_learning_rate(train: TrainOptions) -> float:
    """The configured learning rate, times the global batch if scale_lr."""
    return train.learning_rate * (train.global_batch_size if train.scale_lr else 1)


def learning_rate_schedule(train: TrainOptions) -> Callable[[int], float]:
    """The learning rate of each update, counted from 0, as a pure function: nothing of it needs saving."""
    peak = peak_learning_rate(train)
    if train.lr_scheduler == "timm_constant_with_warmup":
        return lambda update: _timm_warmup(update, peak, train) if update < train.warmup_t else peak
    if train.lr_scheduler == "timm_cosine":
        return lambda update: _timm_cosine(update, peak, train)
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(
        train.lr_scheduler,
        probe,
        num_warmup_steps=train.lr_warmup_steps,
        num_training_steps=train.max_train_steps,
        num_cycles=train.lr_num_cycles,
        power=train.lr_power,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda update: peak * factor(update)


def _timm_warmup(update: int, peak: float, train: TrainOptions) -> float:
    return train.warmup_lr_init + update * (peak - train.warmup_lr_init) / train.warmup_t


def _timm_cosine(update: int, peak: float, train: TrainOptions) -> float:
    """One half cosine from peak to lr_min, then lr_min (timm's schedule with one cycle)."""
    if update < train.warmup_t:
        return _timm_warmup(update, peak, train)
    offset = train.warmup_t if train.warmup_prefix else 0
    length = train.t_initial or max(train.max_train_steps - offset, 1)
    progress = min((update - offset) / length, 1.0)
    return train.lr_min + 0.5 * (peak - train.lr_min) * (1 + math.cos(math.pi * progress))
