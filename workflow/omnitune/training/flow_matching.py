"""The training objective: rectified flow from noise (t = 0) to data (t = 1), arXiv 2506.18871."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnitune.config.experiment.training import TransportOptions
from omnitune.flops import SampleTokens

BINS = 10


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits from what it belongs to: a function of its parts alone, whatever process computes it."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seed(seed: int, step: int, slot: int) -> int:
    """The seed of all random numbers of the sample that stands in a slot of a step."""
    return seed_of(seed, step, slot)


def shift_timesteps(t: Tensor, num_tokens: Tensor | int, version: str = "v1") -> Tensor:
    """Shifts times towards noise, the more so the more image tokens there are.

    Args:
        t: times in (0, 1), any shape; t = 1 is data.
        num_tokens: image tokens (16 x 16 pixels each), broadcast against t.
        version: "v1", with mu linear in the tokens (0.5 at 256, 1.15 at 4096), or "v2".

    Raises:
        ValueError: for an unknown version.
    """
    tokens = torch.as_tensor(num_tokens, dtype=t.dtype, device=t.device)
    if version == "v1":
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        factor = torch.exp(mu)
        return 1 - factor / (factor + 1 / (1 - t) - 1)
    if version == "v2":
        m = torch.sqrt(tokens) / 20
        return t / (m - m * t + t)
    raise ValueError(f"time_shift_version: {version!r} is not allowed; use 'v1' or 'v2'.")


def training_times(draws: Tensor, num_tokens: Tensor, transport: TransportOptions, max_output_tokens: int) -> Tensor:
    """Training times from raw draws.

    Args:
        draws: [B], normal draws for "lognorm" and "logit_normal", uniform ones otherwise.
        num_tokens: [B] image tokens of each sample.
        transport: distribution and shift.
        max_output_tokens: tokens of max_output_pixels, for a shift that is the same for all samples.

    Returns:
        [B] times in (0, 1).
    """
    t = draws
    if transport.snr_type == "lognorm":
        t = torch.sigmoid(draws)
    elif transport.snr_type == "logit_normal":
        t = torch.sigmoid(transport.logit_mean + transport.logit_std * draws)
    if not transport.do_shift:
        return t
    tokens = num_tokens if transport.dynamic_time_shift else torch.full_like(num_tokens, max_output_tokens)
    return shift_timesteps(t, tokens, transport.time_shift_version)


def draw_time(generator: torch.Generator, transport: TransportOptions, slot: int, global_batch_size: int) -> Tensor:
    """The raw draw of one sample's time, float32, no dimensions; `stratified_uniform` draws from the slot's part."""
    if transport.snr_type in {"lognorm", "logit_normal"}:
        return torch.randn((), generator=generator)
    draw = torch.rand((), generator=generator)
    return (slot + draw) / global_batch_size if transport.snr_type == "stratified_uniform" else draw


def loss_weights(times: Tensor, transport: TransportOptions) -> Tensor | float:
    """Weights of samples' squared velocity errors by their times [B].

    min_snr: the error of the predicted data is (1 - t) times that of the velocity, and the signal-to-noise ratio is
    (t / (1 - t))^2, so that min(SNR, gamma) on the data's error (arXiv 2303.09556) is min(t^2, gamma (1 - t)^2) here.
    """
    if transport.loss_weighting == "none":
        return 1.0
    return torch.minimum(times.square(), transport.min_snr_gamma * (1 - times).square())


@dataclass
class Conditioned:
    """One sample as the model sees it, before noise.

    Attributes:
        target: [C, H, W] latent of the output image (x1).
        references: latents [C, h, w] of the input images.
        text: [L, D] text features without padding.
        draw: raw draw for the time. None where the time is set by hand.
        noise: [C, H, W] normal noise (x0).
        seed: of random numbers that the model draws for this sample (dropout).
        key: names the sample to people.
        task_type: by which held-out losses are told apart.
    """

    target: Tensor
    references: list[Tensor]
    text: Tensor
    noise: Tensor
    draw: Tensor | None = None
    seed: int = 0
    key: str = ""
    task_type: str = ""


def interpolate(noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
    """The point x_t = t * data + (1 - t) * noise on the straight path."""
    return t * data + (1 - t) * noise


def pad_text(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[L_i, D] features to [B, max L, D], padded right, and their mask [B, max L] (1 = token)."""
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(f), dtype=torch.long, device=f.device) for f in features], True)
    return nn.utils.rnn.pad_sequence(list(features), batch_first=True), mask


def velocity_errors(model: nn.Module, samples: Sequence[Conditioned], times: Tensor) -> Tensor:
    """Squared error of the predicted velocity, summed over each sample's latent elements.

    Args:
        model: the transformer.
        samples: B samples; their latents may differ in size.
        times: [B], t = 1 is data.

    Returns:
        [B] float32 sums over C * H * W.
    """
    text, mask = pad_text([sample.text for sample in samples])
    noisy = [interpolate(s.noise, s.target, t) for s, t in zip(samples, times.to(samples[0].target), strict=True)]
    predictions = model(
        hidden_states=noisy,
        timestep=times,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        ref_image_hidden_states=[sample.references for sample in samples],
        return_dict=False,
    )
    if isinstance(predictions, tuple):
        predictions = predictions[0]
    errors = [
        (prediction.float() - (sample.target - sample.noise).float()).square().sum()
        for prediction, sample in zip(predictions, samples, strict=True)
    ]
    return torch.stack(errors)


def latent_elements(samples: Sequence[Conditioned]) -> Tensor:
    """[B] number of latent elements of each sample's target."""
    return torch.tensor([sample.target.numel() for sample in samples], dtype=torch.float32)


def time_bins(times: Tensor) -> Tensor:
    """[B] index of the tenth of [0, 1] that each time falls into."""
    return (times * BINS).long().clamp(0, BINS - 1)


def image_tokens(latent: Tensor, patch_size: int) -> int:
    """Number of image tokens of a latent [C, H, W]."""
    return math.prod(latent.shape[-2:]) // patch_size**2


def sample_tokens(sample: Conditioned, patch_size: int) -> SampleTokens:
    """Tokens that the model computes on for a sample."""
    references = tuple(image_tokens(latent, patch_size) for latent in sample.references)
    return SampleTokens(len(sample.text), references, image_tokens(sample.target, patch_size))
