"""OmniGen2 in diffusers style: transformer, schedulers, pipeline, text features and LoRA.

Names are loaded when they are first used: importing diffusers takes seconds, and reading a prompt needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .components import read_transformer
    from .lora.lora import load_lora, lora_config, lora_state_dict, read_lora, save_lora
    from .pipeline_omnigen2 import OmniGen2Pipeline
    from .scheduler import OmniGen2DPMSolverScheduler, OmniGen2FlowMatchScheduler
    from .text.features import encode_text
    from .text.prompts import DEFAULT_NEGATIVE_PROMPT, SYSTEM_PROMPT, SYSTEM_PROMPT_DROP, apply_chat_template
    from .transformer.transformer_omnigen2 import (
        MAX_REFERENCE_IMAGES,
        OmniGen2Transformer2DModel,
        OmniGen2TransformerBlock,
    )

_HOMES = {
    "DEFAULT_NEGATIVE_PROMPT": "text.prompts",
    "MAX_REFERENCE_IMAGES": "transformer.transformer_omnigen2",
    "SYSTEM_PROMPT": "text.prompts",
    "SYSTEM_PROMPT_DROP": "text.prompts",
    "OmniGen2DPMSolverScheduler": "scheduler",
    "OmniGen2FlowMatchScheduler": "scheduler",
    "OmniGen2Pipeline": "pipeline_omnigen2",
    "OmniGen2Transformer2DModel": "transformer.transformer_omnigen2",
    "OmniGen2TransformerBlock": "transformer.transformer_omnigen2",
    "apply_chat_template": "text.prompts",
    "encode_text": "text.features",
    "load_lora": "lora.lora",
    "lora_config": "lora.lora",
    "lora_state_dict": "lora.lora",
    "read_lora": "lora.lora",
    "read_transformer": "components",
    "save_lora": "lora.lora",
}

__all__ = [
    "DEFAULT_NEGATIVE_PROMPT",
    "MAX_REFERENCE_IMAGES",
    "SYSTEM_PROMPT",
    "SYSTEM_PROMPT_DROP",
    "OmniGen2DPMSolverScheduler",
    "OmniGen2FlowMatchScheduler",
    "OmniGen2Pipeline",
    "OmniGen2Transformer2DModel",
    "OmniGen2TransformerBlock",
    "apply_chat_template",
    "encode_text",
    "load_lora",
    "lora_config",
    "lora_state_dict",
    "read_lora",
    "read_transformer",
    "save_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
