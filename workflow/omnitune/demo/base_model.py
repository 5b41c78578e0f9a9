"""The demo's base model: a pipeline folder in the published layout, small enough to train on a laptop.

model_index.json, scheduler/scheduler_config.json
transformer/   the shipped OmniGen2Transformer2DModel of three million parameters, which draws (see
train_transformer.py) vae/           the shipped AutoencoderKL (see train_vae.py)
mllm/          a tiny random Qwen2.5-VL, frozen
processor/     its tokenizer with the chat template
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

from omnitune.demo.text_encoder import HIDDEN_SIZE, save_text_encoder
from omnitune.demo.vae import load_vae
from omnitune.io.files import write_json
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.components import model_index
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Attention

# Weights in bfloat16; transformer.json beside them holds their SHA-256, how they were trained and what they can do.
WEIGHTS = Path(__file__).with_name("transformer.safetensors")
# The demo's options files repeat this as model.arch_opt. Heads are small, with few channels per axis: of an axis'
# rotary frequencies only the fastest tells neighbours on a 4 x 4 grid apart, so the fewer there are, the larger its
# share of a query.
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 128,
    "num_layers": 6,
    "num_refiner_layers": 1,
    "num_attention_heads": 8,
    "num_kv_heads": 8,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "axes_dim_rope": (8, 4, 4),
    "axes_lens": (1024, 1024, 1024),
    "text_feat_dim": HIDDEN_SIZE,
    "timestep_scale": 1000.0,
}
TOKEN_BIAS = 0.5  # standard deviation
PLACE_WEIGHT = 2.0
SCHEDULER_CONFIG = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": diffusers.__version__,
    "dynamic_time_shift": True,
    "num_train_timesteps": 1000,
}


def build_transformer(seed: int = 0) -> OmniGen2Transformer2DModel:
    """The untrained transformer, float32; leaves the global random state as it was.

    Two things differ from the published start, so that minutes of training suffice: image tokens have a part in common
    (a bias), without which a query made of pure noise asks for nothing in particular, and queries and keys weigh the
    rotary channels that tell rows and columns apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniGen2Transformer2DModel(**TRANSFORMER_CONFIG).eval()
        with torch.no_grad():
            for embedder in (model.x_embedder, model.ref_image_patch_embedder):
                embedder.bias.normal_(0, TOKEN_BIAS)
            for module in model.modules():
                if isinstance(module, OmniGen2Attention):
                    _weigh_places(module.norm_q.weight)
                    _weigh_places(module.norm_k.weight)
    return model


def load_transformer() -> OmniGen2Transformer2DModel:
    """The shipped transformer, float32: it draws the demo's world but for what the demo teaches."""
    model = build_transformer()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return model


def _weigh_places(weight: torch.Tensor) -> None:
    """Raises the two channels of the fastest frequency of rows and of columns; `weight` is [head_dim]."""
    index, rows, _ = TRANSFORMER_CONFIG["axes_dim_rope"]
    for start in (index, index + rows):
        weight[start : start + 2] = PLACE_WEIGHT


def build_base_model(
    folder: Path, seed: int = 0, make_transformer: Callable[[], OmniGen2Transformer2DModel] = load_transformer
) -> None:
    """Write the pipeline folder, which must not exist or be empty; the same arguments, the same bytes.

    `seed` is that of tokenizer and text encoder; the shipped transformer has learned to read those of 0. Raises
    FileExistsError where `folder` already holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; remove it to build the demo model again")
    save_text_encoder(folder, seed)
    load_vae().save_pretrained(folder / "vae")
    make_transformer().save_pretrained(folder / "transformer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    write_json(folder / "model_index.json", model_index(folder))
