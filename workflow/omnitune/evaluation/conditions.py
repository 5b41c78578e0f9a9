"""What images are drawn from: text features and references, each encoded once in a run while it is in use."""

from functools import lru_cache
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import negative_prompt, open_image
from omnitune.models import OmniGen2Pipeline

TEXTS, POSTERIORS = 256, 64  # kept, of the latest; what has the same prompt is drawn one after the other


class Conditions:
    """The conditions of a benchmark's images, in the hands of one pipeline.

    A text is encoded by itself: its features are the same to the last bit whatever it is drawn with.

    Args:
        pipeline: on its device.
        benchmark: limits of images, and the negative prompt.
    """

    def __init__(self, pipeline: OmniGen2Pipeline, benchmark: Benchmark) -> None:
        self.pipeline, self.benchmark = pipeline, benchmark
        self.text = lru_cache(TEXTS)(self._text)
        self._encoded = lru_cache(POSTERIORS)(self._encode)
        self.negative = self._text(negative_prompt(benchmark))

    @torch.no_grad()
    def _text(self, instruction: str) -> Tensor:
        """Features [length, D] of a text."""
        [features] = self.pipeline.encode_prompt([instruction])
        return features

    def posterior(self, image: Path, target: bool = False) -> DiagonalGaussianDistribution:
        """The VAE's posterior of an input, or a target, brought within the benchmark's limits."""
        limits = self.benchmark.max_pixels, self.benchmark.max_input_pixels
        return self._encoded(image, limits[0] if target else limits[1] or limits[0])

    @torch.no_grad()
    def _encode(self, image: Path, max_pixels: int) -> DiagonalGaussianDistribution:
        return self.pipeline.encode_posterior(open_image(image), max_pixels, self.benchmark.max_side_length)

    def latent(self, image: Path, target: bool = False) -> Tensor:
        """The latent [C, h, w] of an image, float32: the mode of its posterior, shifted and scaled."""
        return self.pipeline.scale_latent(self.posterior(image, target).mode())
