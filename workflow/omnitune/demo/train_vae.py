"""Train the demo's VAE on random scenes: `python -m omnitune.demo.train_vae --output vae.safetensors`.

Deterministic for one thread on one machine type: scenes, order and posterior noise come from the seed. One core trains
the shipped weights in about ten minutes; nobody needs to, as they are part of the package. The convolutions are trained
by Muon (momentum orthogonalised by Newton-Schulz steps, Jordan 2024): after 300 batches it stands at 22.6 dB where Adam
has 15.6.
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from omnitune.demo.scenes import SHAPE_COLOURS, Scene, random_scene, render
from omnitune.demo.vae import VAE_CONFIG
from omnitune.io.files import atomic_path

# Raw size and size at training (64 x 64 pixels at most, sides in multiples of 16), with the share of each.
SIZES = (((128, 128), (64, 64), 7), ((128, 96), (64, 48), 1), ((96, 128), (48, 64), 1), ((160, 96), (80, 48), 1))
KL_WEIGHT = 1e-3  # per latent element, against the mean over pixels: bounds the latents, costs a fraction of a dB
# The first three latent channels are held near the mean colour of the 8 x 8 pixels behind them. A linear map
# from these explains 99.6 % of its variance; from channels left free, 75 %. The decoder is as good with either.
COLOUR_WEIGHT = 0.3
COLOUR_GAIN = 1.5  # brings them to about unit variance
EDGE_WEIGHT = 3.0  # extra weight of pixels on an edge: most of the error lives there
EMA_DECAY = 0.99
LEARNING_RATE = 0.02  # of the convolutions
OTHERS_LEARNING_RATE = 2e-3  # of biases and norms, by Adam
BATCH = 4
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of Muon, five times


def draw_images(count: int, seed: int) -> list[torch.Tensor]:
    """One uint8 tensor [n, 3, H, W] per size of SIZES, `count` images in all; one in twelve has no shape."""
    rng = random.Random(seed)
    share = sum(weight for *_, weight in SIZES)
    groups = []
    for raw, size, weight in SIZES:
        images = []
        for _ in range(count * weight // share):
            scene = random_scene(rng)
            if rng.random() < 1 / 12:
                scene = Scene(
                    None, next(iter(SHAPE_COLOURS)), "centre", scene.background, scene.pattern, (0.5, 0.5), 0.0
                )
            image = render(scene, *raw).resize(size, Image.Resampling.LANCZOS)
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        groups.append(torch.stack(images))
    return groups


def to_model(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 3, H, W] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def edge_weights(images: torch.Tensor) -> torch.Tensor:
    """[n, 1, H, W]: 1 on flat ground, up to 1 + EDGE_WEIGHT within two pixels of a strong edge."""
    low, high = -functional.max_pool2d(-images, 3, 1, 1), functional.max_pool2d(images, 3, 1, 1)
    contrast = (high - low).amax(1, keepdim=True).clamp(max=1)
    return 1 + EDGE_WEIGHT * functional.avg_pool2d(contrast, 3, 1, 1)


def vae_loss(vae: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """L1 + MSE, weighted towards edges, plus a small KL of the posterior, its mean pulled to plain colours."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    output = vae.decode(posterior.mean + posterior.std * noise).sample
    error = output - images
    pixels = (edge_weights(images) * (0.5 * error.abs() + 2 * error.square())).mean()
    colours = COLOUR_GAIN * functional.avg_pool2d(images, 8)
    guide = (posterior.mean[:, :3] - colours).square().mean()
    return pixels + COLOUR_WEIGHT * guide + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def orthogonalised(gradient: torch.Tensor) -> torch.Tensor:
    """A convolution's gradient [out, in, kh, kw] with all singular values (as a matrix out x rest) near one."""
    matrix = gradient.flatten(1)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
    return scale * (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).reshape(gradient.shape)


class ConvolutionMuon:
    """Muon with Nesterov momentum for the 4-d weights of a model."""

    def __init__(self, model: torch.nn.Module, momentum: float = 0.95) -> None:
        self.weights = [weight for weight in model.parameters() if weight.ndim == 4]
        self.buffers = [torch.zeros_like(weight) for weight in self.weights]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for weight, buffer in zip(self.weights, self.buffers, strict=True):
            assert weight.grad is not None, "step() follows backward()"
            buffer.mul_(self.momentum).add_(weight.grad)
            weight.add_(orthogonalised(weight.grad.add(buffer, alpha=self.momentum)), alpha=-learning_rate)


@torch.no_grad()
def psnr(vae: AutoencoderKL, groups: list[torch.Tensor]) -> float:
    """Mean over images of the PSNR in dB of the reconstruction from the posterior's mean, rounded to 8 bits."""
    values = []
    for images in groups:
        output = vae.decode(vae.encode(to_model(images)).latent_dist.mode()).sample.clamp(-1, 1)
        levels = ((output + 1) * 127.5).round()
        errors = (levels - images.float()).square().mean((1, 2, 3)).clamp(min=1e-4)
        values.append(10 * torch.log10(255**2 / errors))
    return torch.cat(values).mean().item()


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, groups: list[torch.Tensor]) -> tuple[float, float]:
    """Mean and standard deviation over all elements of posterior samples."""
    generator = torch.Generator().manual_seed(1)
    latents = []
    for images in groups:
        posterior = vae.encode(to_model(images)).latent_dist
        latents.append(
            (posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)).flatten()
        )
    values = torch.cat(latents)
    return values.mean().item(), values.std().item()


def train_vae(output: Path, steps: int, seed: int = 0) -> float:
    """Train for `steps` batches, write averaged weights as float16 with their statistics; returns the PSNR in dB."""
    torch.manual_seed(seed)
    groups, test = draw_images(6000, seed), draw_images(200, seed + 1)
    vae = AutoencoderKL(**VAE_CONFIG)
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    averaged: Any = average.module
    convolutions = ConvolutionMuon(vae)
    others = torch.optim.Adam([weight for weight in vae.parameters() if weight.ndim != 4], betas=(0.9, 0.99))
    rng, generator, start = random.Random(seed), torch.Generator().manual_seed(seed), time.monotonic()
    for step in range(steps):
        factor = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        group = rng.choices(groups, weights=[len(images) for images in groups])[0]
        loss = vae_loss(vae, to_model(group[torch.tensor(rng.sample(range(len(group)), BATCH))]), generator)
        vae.zero_grad()
        loss.backward()
        convolutions.step(LEARNING_RATE * factor)
        others.param_groups[0]["lr"] = OTHERS_LEARNING_RATE * factor
        others.step()
        average.update_parameters(vae)
        if (step + 1) % 200 == 0:
            seconds = time.monotonic() - start
            print(
                f"step {step + 1} loss {loss.item():.4f} psnr {psnr(averaged, test):.2f} {seconds:.0f} s",
                flush=True,
            )
    return save_vae(averaged, groups, test, output)


def save_vae(vae: AutoencoderKL, groups: list[torch.Tensor], test: list[torch.Tensor], output: Path) -> float:
    """Round to float16, measure the latents and the PSNR of what is written, and write."""
    vae = vae.half().float().eval()
    mean, std = latent_statistics(vae, [images[:200] for images in groups])
    quality = psnr(vae, test)
    metadata = {"shift_factor": f"{mean:.6f}", "scaling_factor": f"{1 / std:.6f}", "psnr": f"{quality:.2f}"}
    tensors = {name: tensor.half().contiguous() for name, tensor in vae.state_dict().items()}
    with atomic_path(output) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    print(f"{output}: {output.stat().st_size} bytes, {metadata}", flush=True)
    return quality


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file to write, such as vae.safetensors")
    parser.add_argument("--steps", type=int, default=1600, help="batches of four images")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_vae(arguments.output, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
