"""Learning rate schedules as pure functions of the update."""

import pytest
import torch

from omnitune.config.training import TrainOptions
from omnitune.training.optimizer import build_optimizer, learning_rate_schedule, peak_learning_rate

pytestmark = pytest.mark.unit


def test_constant_with_warmup_as_published() -> None:
    rate = learning_rate_schedule(TrainOptions(learning_rate=1.0, warmup_t=4, warmup_lr_init=0.0))
    assert [rate(update) for update in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_to_its_minimum() -> None:
    train = TrainOptions(
        learning_rate=1.0, lr_scheduler="timm_cosine", warmup_t=2, warmup_lr_init=0.0, lr_min=0.1, max_train_steps=12
    )
    rate = learning_rate_schedule(train)
    assert rate(0) == 0.0
    assert rate(2) == pytest.approx(1.0)
    assert rate(7) == pytest.approx(0.55)
    assert rate(12) == pytest.approx(0.1)
    assert rate(100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_diffusers_schedules_agree_with_diffusers(name: str) -> None:
    from diffusers.optimization import get_scheduler

    train = TrainOptions(learning_rate=0.5, lr_scheduler=name, lr_warmup_steps=3, max_train_steps=10)
    rate = learning_rate_schedule(train)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)
    for update in range(10):
        assert rate(update) == pytest.approx(scheduler.get_last_lr()[0]), update
        optimizer.step()
        scheduler.step()


def test_scaled_learning_rate() -> None:
    assert peak_learning_rate(TrainOptions(learning_rate=0.1, scale_lr=True, global_batch_size=16)) == pytest.approx(
        1.6
    )


def test_optimizer_takes_the_options() -> None:
    optimizer = build_optimizer(
        [torch.nn.Parameter(torch.zeros(2))], TrainOptions(adam_beta2=0.9, adam_weight_decay=0.2)
    )
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.9)
    assert group["weight_decay"] == 0.2
