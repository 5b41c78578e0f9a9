"""The frozen half of the model: images to posteriors of their latents, instructions to text features."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from omnitune.models.components import load_text_encoder, load_vae
from omnitune.models.text.features import encode_text, text_model_of
from omnitune.models.text.prompts import load_tokenizer

SCALING_FACTOR = 0.18215  # AutoencoderKL's own, where a config does not name one


def latent_scaling(folder: Path) -> tuple[float, float]:
    """(shift, scale) of a pipeline folder's latents: the model sees (z - shift) * scale. Loads no weights."""
    config = AutoencoderKL.load_config(Path(folder) / "vae")
    return config.get("shift_factor") or 0.0, config.get("scaling_factor", SCALING_FACTOR)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, whatever training allows itself: what is encoded once must equal what is computed while training."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, allowed, strict=True):
            backend.allow_tf32 = value


class FrozenEncoder:
    """VAE and text encoder of a pipeline folder.

    Args:
        folder: the pipeline folder.
        device: to compute on.
        text_dtype: of the text encoder; the VAE computes in float32.
        max_text_tokens, use_chat_template: see `encode_text`.
        batch_pixels: pixels of equally large images that go through the VAE at once, which bounds its memory.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        text_dtype: torch.dtype,
        max_text_tokens: int,
        use_chat_template: bool,
        batch_pixels: int,
    ) -> None:
        self.device = device
        vae: Any = load_vae(folder, torch.float32)
        self.vae = vae.to(device).eval().requires_grad_(False)
        # Without the vision tower, which instructions do not pass through.
        self.text_model = text_model_of(load_text_encoder(folder, text_dtype)).to(device).eval().requires_grad_(False)
        self.tokenizer = load_tokenizer(folder)
        self.max_text_tokens = max_text_tokens
        self.use_chat_template = use_chat_template
        self.batch_pixels = batch_pixels

    @torch.no_grad()
    def posteriors(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Mean and log-variance of each image's latent, float32 [C, H / 8, W / 8], before shift and scaling.

        Args:
            images: float32 [3, H, W] in [-1, 1] each; those of one size are computed together.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for numbers in self._buckets(images):
            pixels = torch.stack([images[k] for k in numbers]).to(self.device)
            with _full_precision():
                posterior = self.vae.encode(pixels).latent_dist
            found |= zip(numbers, zip(posterior.mean, posterior.logvar, strict=True), strict=True)
        return [found[k] for k in range(len(images))]

    def _buckets(self, images: Sequence[Tensor]) -> Iterator[list[int]]:
        """Numbers of images that go through the VAE together."""
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            sizes[image.shape[-2], image.shape[-1]].append(number)
        for size, numbers in sizes.items():
            length = max(1, self.batch_pixels // math.prod(size))
            yield from (numbers[start : start + length] for start in range(0, len(numbers), length))

    def texts(self, instructions: Sequence[str], drop: Sequence[bool] | bool = False) -> list[Tensor]:
        """[L, D] features of each instruction in the text encoder's dtype, without padding; see `encode_text`."""
        with _full_precision():
            features, mask = encode_text(
                self.text_model,
                self.tokenizer,
                instructions,
                drop,
                max_length=self.max_text_tokens,
                device=self.device,
                use_chat_template=self.use_chat_template,
            )
        return [row[row_mask.bool()] for row, row_mask in zip(features, mask, strict=True)]
