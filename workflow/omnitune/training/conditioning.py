"""From samples to what the model sees: VAE latents and text features, computed while training."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from omnitune.data.loader import Sample
from omnitune.models.text_features import encode_text
from omnitune.training.flow_matching import Conditioned, sample_generator


@dataclass
class MemoryCache:
    """Keeps tensors up to a number of bytes and forgets the ones not used for longest.

    Small data sets are seen many times; their posteriors and text features need not be computed each time.
    """

    limit: int
    _items: OrderedDict[Any, tuple[Tensor, ...]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, key: Any) -> tuple[Tensor, ...] | None:
        """The tensors kept under a key."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: Any, tensors: tuple[Tensor, ...]) -> None:
        """Keeps tensors under a key."""
        if self.limit == 0 or key in self._items:
            return
        self._items[key] = tensors
        self._bytes += _bytes_of(tensors)
        while self._bytes > self.limit:
            _, dropped = self._items.popitem(last=False)
            self._bytes -= _bytes_of(dropped)


def _bytes_of(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class Conditioner:
    """Encodes samples with the frozen VAE and text encoder, and draws their noise and times.

    All randomness of a sample comes from its own generator, in a fixed order: time, posterior of the target,
    noise, posteriors of the references.
    """

    def __init__(
        self,
        vae: Any,
        mllm: nn.Module,
        tokenizer: Any,
        device: torch.device,
        *,
        snr_type: str,
        max_text_tokens: int,
        use_chat_template: bool,
        cache_bytes: int,
    ) -> None:
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.vae_dtype = self.vae.dtype  # diffusers walks through all modules to find it
        self.mllm = mllm.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = device
        self.snr_type = snr_type
        self.max_text_tokens = max_text_tokens
        self.use_chat_template = use_chat_template
        self.cache = MemoryCache(cache_bytes)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], seed: int) -> list[Conditioned]:
        """Encodes samples; `seed` is the experiment's."""
        texts = self._text_features(samples)
        posteriors = [self._posteriors(sample) for sample in samples]
        return [
            self._draw(sample_generator(seed, sample.step, sample.slot), text, images)
            for sample, text, images in zip(samples, texts, posteriors, strict=True)
        ]

    def _draw(self, generator: torch.Generator, text: Tensor, posteriors: list[tuple[Tensor, Tensor]]) -> Conditioned:
        *references, target = posteriors
        draw = torch.randn if self.snr_type == "lognorm" else torch.rand
        time = draw((), generator=generator)
        latent = self._latent(target, generator)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        return Conditioned(latent, [self._latent(r, generator) for r in references], text, noise, time)

    def _latent(self, posterior: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Draws from the posterior and scales: (z - shift_factor) * scaling_factor, [C, H, W] float32."""
        mean, std = posterior
        z = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        return (z - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def _posteriors(self, sample: Sample) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation [C, H, W] of each input image's latent, then the output image's."""
        images = [*sample.input_images, sample.output_image]
        positions = [*range(len(sample.input_images)), "output"]
        return [self._posterior((sample.key, p), image) for p, image in zip(positions, images, strict=True)]

    def _posterior(self, key: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.cache.get(key)
        if kept is None:
            pixels = image.to(self.device, self.vae_dtype)
            posterior = self.vae.encode(pixels.unsqueeze(0)).latent_dist
            kept = (posterior.mean[0].float(), posterior.std[0].float())
            self.cache.put(key, kept)
        return kept[0], kept[1]

    def _text_features(self, samples: Sequence[Sample]) -> list[Tensor]:
        """[L, D] features of each sample's instruction, without padding."""
        wanted = [(sample.instruction, sample.drop_prompt) for sample in samples]
        found = {key: self.cache.get(("text", key)) for key in wanted}
        missing = [key for key, kept in found.items() if kept is None]
        if missing:
            features, mask = encode_text(
                self.mllm,
                self.tokenizer,
                [instruction for instruction, _ in missing],
                [drop for _, drop in missing],
                max_length=self.max_text_tokens,
                device=self.device,
                use_chat_template=self.use_chat_template,
            )
            for key, row, row_mask in zip(missing, features, mask, strict=True):
                found[key] = (row[row_mask.bool()].float(),)
                self.cache.put(("text", key), found[key])  # type: ignore[arg-type]
        return [found[key][0] for key in wanted]  # type: ignore[index]
