"""Learning rate schedules: pure functions of the update, so that nothing of them needs saving."""

import math
from collections.abc import Callable, Iterator

import torch
from diffusers.optimization import get_scheduler

from omnitune.config import ExperimentOptions
from omnitune.config.choices import SCHEDULES
from omnitune.config.experiment.training import TrainOptions

Rate = Callable[[int], float]  # of each update, counted from 0
WITHOUT_WARMUP = ("constant", "piecewise_constant")
STARTING_SHARE = 0.1  # of an average, from which it says little of the training


def learning_rate_schedule(train: TrainOptions) -> Rate:
    """The learning rate of each update."""
    schedule: Rate = SCHEDULES[train.lr_scheduler].load()(train)
    return schedule


def peak_learning_rate(train: TrainOptions) -> float:
    """The configured learning rate, times the global batch if scale_lr."""
    return train.learning_rate * (train.global_batch_size if train.scale_lr else 1)


def never_reached(options: ExperimentOptions) -> Iterator[str]:
    """A line on each thing that the options ask for and does not come in so few steps, or comes once at the end."""
    train, val, steps = options.train, options.val, options.train.max_train_steps
    length = f"the {steps} steps of the training (train.max_train_steps)"
    timm = train.lr_scheduler.startswith("timm_")
    key, warmup = ("warmup_t", train.warmup_t) if timm else ("lr_warmup_steps", train.lr_warmup_steps)
    if train.lr_scheduler not in WITHOUT_WARMUP and warmup >= steps:
        rate = learning_rate_schedule(train)(steps - 1)
        yield (
            f"train.{key}: the warm-up of {warmup} steps is not over after {length}: the last step has a learning rate "
            f"of {rate:.2g}, not {peak_learning_rate(train):.2g}. Lower train.{key}."
        )
    if train.lr_scheduler == "timm_cosine" and train.t_initial and train.t_initial > steps:
        yield f"train.t_initial: the cosine of {train.t_initial} steps is longer than {length} and does not come down."
    if train.ema_decay and (share := train.ema_decay**steps) > STARTING_SHARE:
        yield (
            f"train.ema_decay: {train.ema_decay:g} is slow for {length}: {share:.0%} of the average will be the "
            "starting weights. Lower it."
        )
    every = [("logger.checkpointing_steps", options.logger.checkpointing_steps, "a checkpoint is saved")]
    if val.data_path is not None:
        every.append(("val.validation_steps", val.validation_steps, "the held-out loss is measured"))
        every.append(("val.train_visualization_steps", val.train_visualization_steps, "images are drawn"))
    for name, interval, done in every:
        if interval > steps:
            yield f"{name}: {interval} is more than {length}: {done} only after the last one."


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
