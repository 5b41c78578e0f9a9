"""The objective: shifted times as published, and a loss that does not care how a batch is cut."""

import json
from pathlib import Path

import pytest
import torch

from omnitune.config.experiment.training import TransportOptions
from omnitune.training.flow_matching import (
    Conditioned,
    draw_time,
    interpolate,
    loss_weights,
    pad_text,
    sample_seed,
    shift_timesteps,
    time_bins,
    training_times,
    velocity_errors,
)

pytestmark = pytest.mark.unit

FIGURES = json.loads((Path(__file__).parents[1] / "data/reference/figures.json").read_text())


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


def test_seed_belongs_to_the_sample() -> None:
    seed = sample_seed(1, 2, 3)
    assert seed == sample_seed(1, 2, 3)
    assert 0 <= seed < 2**63
    assert len({seed, *(sample_seed(*other) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 3)))}) == 5


def draws(transport: TransportOptions, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    raw = torch.stack([draw_time(generator, transport, slot, count) for slot in range(count)])
    return training_times(raw, torch.full((count,), 256), transport, 256)


def test_stratified_times_fall_one_into_each_part() -> None:
    times = draws(TransportOptions(snr_type="stratified_uniform", do_shift=False), 64)
    assert (times * 64).long().tolist() == list(range(64))


def test_logit_normal_times_have_their_mean_and_deviation() -> None:
    transport = TransportOptions(snr_type="logit_normal", logit_mean=0.8, logit_std=0.5, do_shift=False)
    logits = torch.logit(draws(transport, 4000))
    assert float(logits.mean()) == pytest.approx(0.8, abs=0.03)
    assert float(logits.std()) == pytest.approx(0.5, abs=0.02)


def test_min_snr_weights() -> None:
    """min(SNR, gamma) on the error of the data, which is (1 - t) times that of the velocity."""
    times = torch.tensor([0.1, 0.5, 0.9])
    snr = (times / (1 - times)).square()
    expected = torch.minimum(snr, torch.tensor(5.0)) * (1 - times).square()
    torch.testing.assert_close(loss_weights(times, TransportOptions(loss_weighting="min_snr")), expected)
    assert loss_weights(times, TransportOptions()) == 1.0


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
