"""Schedulers against the published times, and against flows whose end is known."""

import json
from pathlib import Path

import pytest
import torch

from omnitune.models import OmniGen2DPMSolverScheduler, OmniGen2FlowMatchScheduler

pytestmark = pytest.mark.unit

FIGURES = json.loads((Path(__file__).parents[1] / "data/reference/figures.json").read_text())
SCHEDULERS = (OmniGen2FlowMatchScheduler, OmniGen2DPMSolverScheduler)


def gaussian_velocity(x: torch.Tensor, t: float, mean: float = 2.0, std: float = 0.5) -> torch.Tensor:
    """Exact velocity of the flow from N(0, 1) to N(mean, std^2)."""
    variance = t**2 * std**2 + (1 - t) ** 2
    data = mean + t * std**2 / variance * (x - t * mean)
    noise = (1 - t) / variance * (x - t * mean)
    return data - noise


def sample(
    scheduler: OmniGen2FlowMatchScheduler, steps: int, start: torch.Tensor, **options: int | None
) -> torch.Tensor:
    scheduler.set_timesteps(steps, **options)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(gaussian_velocity(x, float(t)), t, x).prev_sample
    return x


@pytest.mark.parametrize("case", FIGURES["scheduler"], ids=lambda case: str(case["num_inference_steps"]))
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_published_timesteps(kind: type[OmniGen2FlowMatchScheduler], case: dict) -> None:
    scheduler = kind()
    scheduler.set_timesteps(case["num_inference_steps"], num_tokens=case["num_tokens"])
    assert scheduler.timesteps.dtype == torch.float32
    assert torch.allclose(scheduler.timesteps, torch.tensor(case["timesteps"]), atol=1e-7, rtol=0)


def test_shift_can_be_off() -> None:
    scheduler = OmniGen2FlowMatchScheduler(dynamic_time_shift=False)
    scheduler.set_timesteps(4, num_tokens=4096)
    assert scheduler.timesteps.tolist() == [0.0, 0.25, 0.5, 0.75]
    scheduler.set_timesteps(timesteps=[0.0, 0.5, 0.9])
    assert scheduler.num_inference_steps == 3


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_straight_flow_is_exact(kind: type[OmniGen2FlowMatchScheduler]) -> None:
    noise, data = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    scheduler = kind()
    scheduler.set_timesteps(5, num_tokens=64)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(data - noise, t, x, return_dict=False)[0]
    assert torch.allclose(x, data, atol=1e-6)


def test_both_reach_the_gaussian() -> None:
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = 2.0 + 0.5 * start  # the flow maps one Gaussian onto the other

    def error(kind: type[OmniGen2FlowMatchScheduler], steps: int, num_tokens: int | None) -> float:
        return float((sample(kind(), steps, start, num_tokens=num_tokens) - exact).abs().max())

    assert error(OmniGen2FlowMatchScheduler, 2000, None) < 1e-3
    assert error(OmniGen2DPMSolverScheduler, 160, None) < 1e-3
    assert error(OmniGen2DPMSolverScheduler, 40, 256) < 1e-3
    assert error(OmniGen2DPMSolverScheduler, 40, 256) < error(OmniGen2FlowMatchScheduler, 40, 256) / 20


def test_solver_agrees_with_diffusers() -> None:
    """The same grid, given to diffusers' solver as noise levels sigma = 1 - t and velocities noise - data."""
    from diffusers import DPMSolverMultistepScheduler

    ours = OmniGen2DPMSolverScheduler()
    ours.set_timesteps(8, num_tokens=256)
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    theirs.set_timesteps(8)
    theirs.sigmas = torch.tensor([1 - t for t in [*ours.timesteps.tolist(), 1.0]])
    x = y = torch.linspace(-2, 2, 9)
    for t, step in zip(ours.timesteps, theirs.timesteps, strict=True):
        x = ours.step(gaussian_velocity(x, float(t)), t, x).prev_sample
        y = theirs.step(-gaussian_velocity(y, float(t)), step, y).prev_sample
        assert torch.allclose(x, y, atol=1e-4)


def test_loads_the_published_config(tmp_path: Path) -> None:
    config = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.33.1",
        "num_train_timesteps": 1000,
        "dynamic_time_shift": True,
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    scheduler = OmniGen2FlowMatchScheduler.from_pretrained(tmp_path)
    assert scheduler.config.dynamic_time_shift is True and scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_saves_and_loads(kind: type[OmniGen2FlowMatchScheduler], tmp_path: Path) -> None:
    kind(dynamic_time_shift=False).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config.dynamic_time_shift is False


def test_errors() -> None:
    scheduler = OmniGen2FlowMatchScheduler()
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="before set_timesteps"):
        scheduler.step(x, 0.0, x)
    for wrong in ({}, {"num_inference_steps": 0}, {"num_inference_steps": 2, "timesteps": [0.0]}):
        with pytest.raises(ValueError, match="num_inference_steps"):
            scheduler.set_timesteps(**wrong)
    with pytest.raises(ValueError, match="increase strictly"):
        scheduler.set_timesteps(timesteps=[0.5, 0.5])
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="none of the 1 timesteps"):
        scheduler.step(x, 0.5, x)
    scheduler.step(x, 0.0, x)
    with pytest.raises(ValueError, match="all 1 steps are taken"):
        scheduler.step(x, 0.0, x)
