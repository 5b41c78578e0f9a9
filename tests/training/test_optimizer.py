"""Learning rates as pure functions of the update, optimizers over their groups, averages, the scale of the loss."""

import pytest
import torch

from helpers.projects import changed
from helpers.tiny import TRANSFORMER
from omnitune.checkpoints.average import WeightAverage
from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import TrainOptions
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.training.optimizer import (
    LossScale,
    build_optimizers,
    check_optimizer,
    update,
)
from omnitune.training.schedules import learning_rate_schedule, never_reached, peak_learning_rate

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
    for number in range(10):
        assert rate(number) == pytest.approx(scheduler.get_last_lr()[0]), number
        optimizer.step()
        scheduler.step()


def test_scaled_learning_rate() -> None:
    assert peak_learning_rate(TrainOptions(learning_rate=0.1, scale_lr=True, global_batch_size=16)) == pytest.approx(
        1.6
    )


def test_schedule_by_steps() -> None:
    train = TrainOptions(learning_rate=2.0, lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.5:4,0.1")
    rate = learning_rate_schedule(train)
    assert [rate(update) for update in range(6)] == pytest.approx([2.0, 2.0, 1.0, 1.0, 0.2, 0.2])


def test_optimizer_takes_the_options() -> None:
    model = torch.nn.Linear(2, 2)
    (optimizer,) = build_optimizers(model, TrainOptions(adam_beta2=0.9, adam_weight_decay=0.2))
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.9)
    assert group["weight_decay"] == 0.2


def test_groups_have_their_own_learning_rates() -> None:
    model = torch.nn.Linear(2, 2)
    train = TrainOptions(learning_rate=0.1, adam_weight_decay=0.0)
    optimizers = build_optimizers(model, train, {"weight": None, "bias": 0.3})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(optimizers, 0.05)  # half of the peak: Adam's first step is as long as the learning rate
    moved = {name: float((before[name] - p.detach()).abs().max()) for name, p in model.named_parameters()}
    assert moved == {"weight": pytest.approx(0.05, rel=1e-4), "bias": pytest.approx(0.15, rel=1e-4)}


def test_muon_takes_the_matrices_of_blocks() -> None:
    model = OmniGen2Transformer2DModel(**TRANSFORMER)
    muon, adamw = build_optimizers(model, TrainOptions(optimizer="muon"))
    shapes = [p.ndim for group in muon.param_groups for p in group["params"]]
    assert set(shapes) == {2}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert {
        id(model.x_embedder.weight),
        id(model.layers[0].attn.norm_q.weight),
        id(model.norm_out.linear_2.weight),
    } <= others
    assert len(shapes) + len(others) == len(list(model.parameters()))


def test_average_follows_the_weights() -> None:
    weight = torch.tensor([1.0, 2.0])
    average = WeightAverage({"weight": weight}, decay=0.75)
    weight += 4
    average.update()
    torch.testing.assert_close(average.average["weight"], torch.tensor([2.0, 3.0]))


def test_loss_scale() -> None:
    scale = LossScale(enabled=True)
    assert scale.overflowed() and scale.value == 32768
    for _ in range(LossScale.GROWTH_STEPS):
        scale.succeeded()
    assert scale.value == 65536
    other = LossScale(enabled=True)
    other.load(scale.state())
    assert (other.value, other.good_steps) == (scale.value, scale.good_steps)
    full = LossScale(enabled=False)
    assert full.value == 1 and not full.overflowed()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_8bit_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        check_optimizer(TrainOptions(use_8bit_adam=True, parallelism="ddp"))


def test_which_schedules_know_the_end() -> None:
    ends = {"timm_cosine", "linear", "cosine", "cosine_with_restarts", "polynomial"}
    for name in ("timm_cosine", "timm_constant_with_warmup", "constant", "linear", "cosine", "polynomial"):
        assert TrainOptions(lr_scheduler=name).schedule_stretches == (name in ends)
    assert not TrainOptions(lr_scheduler="timm_cosine", t_initial=5).schedule_stretches


def test_what_never_comes_is_said() -> None:
    short = {"max_train_steps": 100, "warmup_t": 500, "learning_rate": 1e-4, "ema_decay": 0.999}
    sections = {"logger": {"checkpointing_steps": 200}, "val": {"data_path": "held.jsonl", "validation_steps": 101}}
    lines = list(never_reached(ExperimentOptions.model_validate(changed(train=short, **sections))))
    assert [line.partition(":")[0] for line in lines] == [
        "train.warmup_t",
        "train.ema_decay",
        "logger.checkpointing_steps",
        "val.validation_steps",
    ]
    assert "has a learning rate of 2e-05, not 0.0001" in lines[0]
    assert "90% of the average" in lines[1]


def test_what_comes_in_time_is_not_mentioned() -> None:
    train = {"max_train_steps": 100, "warmup_t": 99, "ema_decay": 0.97}
    options = changed(train=train, logger={"checkpointing_steps": 100}, val={"validation_steps": 500})
    assert list(never_reached(ExperimentOptions.model_validate(options))) == []
    unused = {"max_train_steps": 10, "lr_scheduler": "constant", "lr_warmup_steps": 500}
    options = changed(train=unused, logger={"checkpointing_steps": 5})
    assert list(never_reached(ExperimentOptions.model_validate(options))) == []
