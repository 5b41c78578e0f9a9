"""The demo's base model: a pipeline folder in the published layout, small enough to train on a laptop.

model_index.json, scheduler/scheduler_config.json
transformer/   OmniGen2Transformer2DModel of 1 to 2 million parameters, from scratch: it predicts exactly zero
vae/           the shipped AutoencoderKL (see train_vae.py)
mllm/          a tiny random Qwen2.5-VL, frozen
processor/     its tokenizer with the chat template
"""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch

from omnitune.demo.text_encoder import HIDDEN_SIZE, save_text_encoder
from omnitune.demo.vae import load_vae
from omnitune.files import write_json
from omnitune.models.components import PUBLISHED_INDEX
from omnitune.models.transformer_omnigen2 import (
    OmniGen2ModulatedNorm,
    OmniGen2Transformer2DModel,
    OmniGen2TransformerBlock,
)

# The demo's options files repeat this as model.arch_opt. A token carries 2 x 2 x 16 = 64 noisy numbers, hence the width; rows and
# columns get most of each head, as only the fastest few rotary frequencies tell neighbours on a 4 x 4 grid apart.
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 96,
    "num_layers": 3,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 2,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "axes_dim_rope": (8, 20, 20),
    "axes_lens": (1024, 1024, 1024),
    "text_feat_dim": HIDDEN_SIZE,
    "timestep_scale": 1000.0,
}
EMBEDDING_BIAS = 1.0  # standard deviation
QUERY_KEY_NORM = 1.5
GATE = 0.5
SCHEDULER_CONFIG = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": diffusers.__version__,
    "dynamic_time_shift": True,
    "num_train_timesteps": 1000,
}


def build_transformer(seed: int = 0) -> OmniGen2Transformer2DModel:
    """The untrained transformer, float32; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniGen2Transformer2DModel(**TRANSFORMER_CONFIG)
        _prime(model)
    return model.eval()


@torch.no_grad()
def _prime(model: OmniGen2Transformer2DModel) -> None:
    """A start from which minutes of training suffice: image tokens find those at their own place, and blocks are open.

    The usual start has to find out first that places matter: an image token is pure noise at t = 0, and only its
    embedding's bias, zero at first, is a query that does not depend on the noise. Here image and reference tokens share
    an embedding with a bias, and queries equal keys, so that rotary positions alone make tokens look at their own place
    in the references. The output layer stays zero: the model still predicts exactly zero.
    """
    torch.nn.init.normal_(model.x_embedder.bias, 0, EMBEDDING_BIAS)
    model.ref_image_patch_embedder.load_state_dict(model.x_embedder.state_dict())
    for module in model.modules():
        if isinstance(module, OmniGen2TransformerBlock):
            module.attn.to_q.weight.copy_(module.attn.to_k.weight)
            for norm in (module.attn.norm_q, module.attn.norm_k):
                norm.weight.fill_(QUERY_KEY_NORM)
            if isinstance(module.norm1, OmniGen2ModulatedNorm):
                _, attention, _, feed_forward = module.norm1.linear.bias.chunk(4)
                attention.fill_(GATE)
                feed_forward.fill_(GATE)


def build_base_model(folder: Path, seed: int = 0) -> None:
    """Write the pipeline folder, which must not exist or be empty; the same seed, the same bytes.

    It is written beside `folder` and renamed at the end. Raises FileExistsError where `folder` already holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; remove it to build the demo model again")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_text_encoder(temporary, seed)
    load_vae().save_pretrained(temporary / "vae")
    build_transformer(seed).save_pretrained(temporary / "transformer")
    write_json(temporary / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    write_json(temporary / "model_index.json", PUBLISHED_INDEX)
    temporary.replace(folder)
