"""Held-out flow-matching loss: the training objective on prompts with a target, at fixed times with fixed noise.

It differs from the training loss in that nothing is random: latents are the posterior's mode, nothing is dropped, and the times
are evenly spread. So two sets of weights can be compared by it to the last digit.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt, open_image, prompt_seed
from omnitune.images.resize import resize, target_size, to_tensor
from omnitune.models import OmniGen2Pipeline
from omnitune.training.flow_matching import Conditioned, velocity_errors


def loss_times(benchmark: Benchmark) -> list[float]:
    """The times of the held-out loss, (i + 0.5) / n; t = 1 is data."""
    count = benchmark.loss_timesteps
    return [(i + 0.5) / count for i in range(count)]


@torch.no_grad()
def heldout_losses(pipeline: OmniGen2Pipeline, prompts: Sequence[Prompt], benchmark: Benchmark) -> list[list[float]]:
    """Mean squared error of the predicted velocity, per prompt and time.

    Args:
        pipeline: on its device.
        prompts: each with a target.
        benchmark: seed, sizes, loss_timesteps and batch_size.

    Returns:
        One list of `loss_timesteps` losses per prompt; a prompt's are the same whatever it is batched with, but for rounding.
    """
    times = loss_times(benchmark)
    texts = pipeline.encode_prompt([prompt.instruction for prompt in prompts])
    work: list[tuple[Conditioned, float]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        assert prompt.target is not None
        target = _latent(pipeline, prompt.target, benchmark)
        references = [_latent(pipeline, image, benchmark) for image in prompt.input_images]
        for number, time in enumerate(times):
            noise = _noise(target, benchmark.seed, prompt.key, number)
            work.append((Conditioned(target, references, text, noise), time))
    losses: list[float] = []
    for start in range(0, len(work), benchmark.batch_size):
        losses += _losses(pipeline, work[start : start + benchmark.batch_size])
    return [losses[i : i + len(times)] for i in range(0, len(losses), len(times))]


def _losses(pipeline: OmniGen2Pipeline, work: Sequence[tuple[Conditioned, float]]) -> list[float]:
    samples = [sample for sample, _ in work]
    times = torch.tensor([time for _, time in work], device=samples[0].target.device)
    errors = velocity_errors(pipeline.transformer, samples, times).tolist()
    return [round(error / sample.target.numel(), 8) for error, sample in zip(errors, samples, strict=True)]


def _noise(target: Tensor, seed: int, key: str, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(prompt_seed(seed, f"{key}/loss/{number}"))
    return torch.randn(target.shape, generator=generator).to(target)


def _latent(pipeline: OmniGen2Pipeline, path: Path, benchmark: Benchmark) -> Tensor:
    """The latent [C, h, w] of an image, float32: the mode of its posterior, shifted and scaled."""
    image = open_image(path)
    size = target_size(*image.size, benchmark.max_pixels, benchmark.max_side_length, pipeline.size_multiple)
    vae = pipeline.vae
    pixels = to_tensor(resize(image, size))[None].to(pipeline._execution_device, vae.dtype)
    mode = vae.encode(pixels).latent_dist.mode()[0].float()
    return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
