"""From samples to what the model sees: VAE latents and text features, stored ones or computed while training."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from omnitune.config.experiment.training import TransportOptions
from omnitune.encoding.read import EncodedIndex
from omnitune.loading.loader import Sample
from omnitune.models.encoder import FrozenEncoder
from omnitune.training.flow_matching import Conditioned, draw_time, sample_seed


class Conditioner:
    """Draws the latents, noise and times of samples.

    All randomness of a sample comes from its own generator, in a fixed order: time, posterior of the target,
    noise, posteriors of the references. It is the same for stored encodings and for those computed here.

    Args:
        source: the encoder that computes posteriors and text features, or the stored ones that samples come with.
        device: of the results.
        scaling: (shift, scale) of the latents; see `latent_scaling`.
        transport: distribution of times.
        global_batch_size: see `draw_time`.
    """

    def __init__(
        self,
        source: FrozenEncoder | EncodedIndex,
        device: torch.device,
        *,
        scaling: tuple[float, float],
        transport: TransportOptions,
        global_batch_size: int,
    ) -> None:
        self.source = source
        self.device = device
        self.shift, self.scale = scaling
        self.transport = transport
        self.global_batch_size = global_batch_size

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], seed: int) -> list[Conditioned]:
        """Conditions samples; `seed` is the experiment's."""
        if isinstance(self.source, EncodedIndex):
            texts = [_stored_text(sample, self.source.dropped).to(self.device) for sample in samples]
            posteriors = [_stored_posteriors(sample, self.device) for sample in samples]
        else:
            drops = [sample.drop_prompt for sample in samples]
            texts = [text.float() for text in self.source.texts([s.instruction for s in samples], drops)]
            posteriors = _computed_posteriors(samples, self.source)
        return [
            self._draw(sample, seed, text, images)
            for sample, text, images in zip(samples, texts, posteriors, strict=True)
        ]

    def _draw(self, sample: Sample, seed: int, text: Tensor, posteriors: list[tuple[Tensor, Tensor]]) -> Conditioned:
        *references, target = posteriors
        own_seed = sample_seed(seed, sample.step, sample.slot)
        generator = torch.Generator().manual_seed(own_seed)
        time = draw_time(generator, self.transport, sample.slot, self.global_batch_size)
        latent = self._latent(target, generator)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        scaled = [self._latent(reference, generator) for reference in references]
        return Conditioned(latent, scaled, text, noise, time, own_seed, sample.key, sample.task_type)

    def _latent(self, posterior: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Draws from the posterior and scales: (z - shift_factor) * scaling_factor, [C, H, W] float32."""
        mean, std = posterior
        z = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        return (z - self.shift) * self.scale


def _computed_posteriors(samples: Sequence[Sample], encoder: FrozenEncoder) -> list[list[tuple[Tensor, Tensor]]]:
    """Mean and standard deviation of the latents of each sample's input images, then its output image."""
    images = [_images(sample) for sample in samples]
    found = iter(encoder.posteriors([image for group in images for image in group]))
    return [[(mean, torch.exp(0.5 * logvar)) for mean, logvar in islice(found, len(group))] for group in images]


def _images(sample: Sample) -> list[Tensor]:
    assert sample.output_image is not None
    return [*sample.input_images, sample.output_image]


def _stored_posteriors(sample: Sample, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    assert sample.encoded is not None
    return [(mean.to(device), std.to(device)) for mean, std in sample.encoded.posteriors]


def _stored_text(sample: Sample, dropped: Tensor) -> Tensor:
    """The stored features of what this sample's instruction was drawn to be; the loader has left out its cliche."""
    assert sample.encoded is not None
    return dropped if sample.drop_prompt else sample.encoded.text
