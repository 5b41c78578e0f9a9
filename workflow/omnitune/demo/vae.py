"""The demo's VAE: the published class and factor 8 with 4 latent channels, small enough to be shipped in the package.

The weights in `vae.safetensors` (float16) come from `python -m omnitune.demo.train_vae`, which also measures the two
latent statistics and keeps them in the file's metadata.
"""

from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file

WEIGHTS = Path(__file__).with_name("vae.safetensors")

# Few channels at full resolution, where the time goes; no attention, as 8 x 8 latents do not need it.
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 24, 44, 44),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
    "sample_size": 64,
}


def load_vae(weights: Path = WEIGHTS) -> AutoencoderKL:
    """The trained VAE, float32, evaluation mode; latents (z - shift_factor) * scaling_factor have mean 0 and std 1."""
    with safe_open(weights, framework="pt") as file:
        figures = {name: float(value) for name, value in (file.metadata() or {}).items() if name.endswith("_factor")}
    vae = AutoencoderKL(**VAE_CONFIG, **figures)
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return vae.eval()
