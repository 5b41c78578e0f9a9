"""A tiny pipeline, a protocol to draw with it, and what is noted of it."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from helpers.tiny import TRANSFORMER
from omnitune.config import Benchmark
from omnitune.demo.text_encoder import HIDDEN_SIZE, build_text_encoder, build_tokenizer
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights
from omnitune.models import OmniGen2FlowMatchScheduler, OmniGen2Pipeline, OmniGen2Transformer2DModel

CONFIG: dict[str, Any] = {**TRANSFORMER, "in_channels": 16, "num_layers": 1, "text_feat_dim": HIDDEN_SIZE}


def build_pipeline(seed: int = 0) -> OmniGen2Pipeline:
    torch.manual_seed(seed)
    transformer = OmniGen2Transformer2DModel(**CONFIG).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    tokenizer = build_tokenizer()
    mllm = build_text_encoder(tokenizer)
    return OmniGen2Pipeline(transformer, vae, OmniGen2FlowMatchScheduler(), mllm, tokenizer)


def protocol(**changes: Any) -> Benchmark:
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "max_pixels": 4096, "dtype": "fp32"}
    return Benchmark(prompts="unused.jsonl", **{"loss_timesteps": 3, **settings, **changes})


def described(base: Path, transformer: Path | None = None) -> dict[str, Any]:
    return describe_weights(EvaluatedWeights(base, transformer, None))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
