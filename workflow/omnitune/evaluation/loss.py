"""Held-out flow-matching loss: the training objective on prompts with a target, at fixed times with fixed noise.

It differs from the training loss in that nothing is random: latents are the posterior's mode, nothing is dropped, and
the times are evenly spread. So two sets of weights can be compared by it to the last digit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnitune.config import Benchmark
from omnitune.evaluation.conditions import Conditions
from omnitune.evaluation.prompts import Prompt, image_seed
from omnitune.models import OmniGen2Pipeline
from omnitune.training.flow_matching import Conditioned, velocity_errors


def loss_times(benchmark: Benchmark) -> list[float]:
    """The times of the held-out loss, (i + 0.5) / n; t = 1 is data."""
    count = benchmark.loss_timesteps
    return [(i + 0.5) / count for i in range(count)]


@torch.no_grad()
def heldout_losses(conditions: Conditions, prompts: Sequence[Prompt]) -> list[list[float]]:
    """Mean squared error of the predicted velocity, per prompt and time.

    Args:
        conditions: of the benchmark, which says seed, sizes, loss_timesteps and batch_size.
        prompts: each with a target.

    Returns:
        One list of `loss_timesteps` losses per prompt; a prompt's are the same whatever it is batched with, but for
        rounding.
    """
    benchmark = conditions.benchmark
    times = loss_times(benchmark)
    work: list[tuple[Conditioned, float]] = []
    for prompt in prompts:
        assert prompt.target is not None
        target, text = conditions.latent(prompt.target, target=True), conditions.text(prompt.instruction)
        references = [conditions.latent(image) for image in prompt.input_images]
        for number, time in enumerate(times):
            noise = _noise(target, image_seed(benchmark, prompt, f"/loss/{number}"))
            work.append((Conditioned(target, references, text, noise), time))
    losses: list[float] = []
    for start in range(0, len(work), benchmark.batch_size):
        losses += _losses(conditions.pipeline, work[start : start + benchmark.batch_size])
    return [losses[i : i + len(times)] for i in range(0, len(losses), len(times))]


def _losses(pipeline: OmniGen2Pipeline, work: Sequence[tuple[Conditioned, float]]) -> list[float]:
    samples = [sample for sample, _ in work]
    times = torch.tensor([time for _, time in work], device=samples[0].target.device)
    errors = velocity_errors(pipeline.transformer, samples, times).tolist()
    return [round(error / sample.target.numel(), 8) for error, sample in zip(errors, samples, strict=True)]


def _noise(target: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(target.shape, generator=generator).to(target)
