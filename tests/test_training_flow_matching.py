"""The objective: shifted times as published, and a loss that does not care how a batch is cut."""

import json
from pathlib import Path

import pytest
import torch

from omnitune.config.training import TransportOptions
from omnitune.training.flow_matching import (
    Conditioned,
    interpolate,
    pad_text,
    sample_generator,
    shift_timesteps,
    time_bins,
    training_times,
    velocity_errors,
)

pytestmark = pytest.mark.unit

FIGURES = json.loads((Path(__file__).parent / "data/reference/figures.json").read_text())


@pytest.mark.parametrize(
    "case", FIGURES["time_shift"], ids=lambda c: f"{c['time_shift_version']}-{c['dynamic_time_shift']}"
)
def test_times_as_published(case: dict) -> None:
    transport = TransportOptions(
        dynamic_time_shift=case["dynamic_time_shift"], time_shift_version=case["time_shift_version"]
    )
    tokens = torch.tensor([height * width // 4 for height, width in case["latent_sizes"]])
    draws = torch.tensor(case["normal_draw"])
    times = training_times(draws, tokens, transport, case["max_output_pixels"] // 256)
    torch.testing.assert_close(times, torch.tensor(case["t"]), atol=1e-6, rtol=0)


def test_times_without_shift() -> None:
    draws = torch.tensor([-1.0, 0.0, 2.0])
    tokens = torch.tensor([16, 16, 16])
    lognorm = training_times(draws, tokens, TransportOptions(do_shift=False), 16)
    torch.testing.assert_close(lognorm, torch.sigmoid(draws))
    uniform = training_times(torch.tensor([0.25]), tokens[:1], TransportOptions(do_shift=False, snr_type="uniform"), 16)
    assert uniform.item() == 0.25


def test_shift_refuses_unknown_version() -> None:
    with pytest.raises(ValueError, match="time_shift_version: 'v3'"):
        shift_timesteps(torch.tensor([0.5]), 256, "v3")


def test_generator_belongs_to_the_sample() -> None:
    draw = torch.randn(3, generator=sample_generator(1, 2, 3))
    torch.testing.assert_close(draw, torch.randn(3, generator=sample_generator(1, 2, 3)))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 3)):
        assert not torch.equal(draw, torch.randn(3, generator=sample_generator(*other)))


def test_bins_and_path() -> None:
    assert time_bins(torch.tensor([0.0, 0.0999, 0.1, 0.95, 1.0])).tolist() == [0, 0, 1, 9, 9]
    noise, data = torch.zeros(2), torch.ones(2)
    assert interpolate(noise, data, 0.25).tolist() == [0.25, 0.25]


def test_text_is_padded_right() -> None:
    features, mask = pad_text([torch.ones(2, 4), torch.ones(3, 4)])
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert features[0, 2].abs().sum() == 0


class PerfectModel(torch.nn.Module):
    """Knows the velocity; is off by `error` everywhere."""

    def __init__(self, samples: list[Conditioned], error: float) -> None:
        super().__init__()
        self.samples, self.error = samples, error

    def forward(self, **inputs: object) -> tuple[list[torch.Tensor]]:
        return ([sample.target - sample.noise + self.error for sample in self.samples],)


def test_errors_are_sums_over_each_sample() -> None:
    samples = [
        Conditioned(torch.randn(4, 8, 8), [], torch.randn(3, 5), torch.randn(4, 8, 8)),
        Conditioned(torch.randn(4, 4, 8), [], torch.randn(2, 5), torch.randn(4, 4, 8)),
    ]
    errors = velocity_errors(PerfectModel(samples, 0.5), samples, torch.tensor([0.3, 0.6]))
    torch.testing.assert_close(errors, torch.tensor([4 * 8 * 8 * 0.25, 4 * 4 * 8 * 0.25]))
