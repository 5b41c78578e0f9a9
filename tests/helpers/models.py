"""Tiny models of the published classes, and a batch of unlike samples."""

import functools
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from helpers.tiny import TRANSFORMER
from omnitune.models import (
    OmniGen2FlowMatchScheduler,
    OmniGen2Pipeline,
    OmniGen2Transformer2DModel,
    lora_config,
    lora_state_dict,
)

TEXT_DIM = TRANSFORMER["text_feat_dim"]
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.1) -> None:
    """Give every matrix random weights, those that start as zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)


def tiny_transformer() -> OmniGen2Transformer2DModel:
    model = OmniGen2Transformer2DModel(**TRANSFORMER).eval()
    randomise(model)
    return model


def adapted_transformer(alpha: float | None = None, **options: Any) -> OmniGen2Transformer2DModel:
    """With an adapter of rank 4 that is not at its start."""
    model = tiny_transformer()
    model.add_adapter(lora_config(4, alpha, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in lora_state_dict(model).values():
            tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    return model


@torch.no_grad()
def text_to_image_output(model: torch.nn.Module) -> torch.Tensor:
    """For one seeded latent and text."""
    generator = torch.Generator().manual_seed(0)
    latent, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    return model(latent, torch.tensor([0.5]), text, None).sample


def tiny_vae() -> AutoencoderKL:
    """Factor 2, four channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@functools.cache
def tiny_tokenizer() -> Qwen2Tokenizer:
    """One token per byte."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], pad_token="<|endoftext|>", extra_special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_mllm() -> Qwen2_5_VLForConditionalGeneration:
    tokenizer = tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_DIM,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_DIM,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    randomise(model, std=0.3)
    return model


def tiny_pipeline() -> OmniGen2Pipeline:
    """A pipeline of a few thousand parameters, built from the published classes."""
    return OmniGen2Pipeline(tiny_transformer(), tiny_vae(), OmniGen2FlowMatchScheduler(), tiny_mllm(), tiny_tokenizer())


def ragged_batch(seed: int = 0) -> dict[str, Any]:
    """Five samples with 0 to 5 references, and different sizes, times and texts."""
    generator = torch.Generator().manual_seed(seed)

    def latent(height: int, width: int) -> torch.Tensor:
        return torch.randn(4, height, width, generator=generator)

    references = [[], [(4, 4)] * 4, [(6, 2)], None, [(2, 2), (4, 6), (2, 8), (6, 6), (4, 2)]]
    lengths = torch.tensor([3, 7, 5, 7, 1])
    return {
        "hidden_states": [latent(8, 8), latent(8, 8), latent(4, 12), latent(6, 6), latent(2, 2)],
        "timestep": torch.tensor([0.0, 0.2, 0.55, 0.9, 1.0]),
        "encoder_hidden_states": torch.randn(5, 9, 32, generator=generator),
        "encoder_attention_mask": torch.arange(9) < lengths[:, None],
        "ref_image_hidden_states": [None if refs is None else [latent(*size) for size in refs] for refs in references],
    }
