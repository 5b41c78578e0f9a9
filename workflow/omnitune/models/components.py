"""The parts of a pipeline folder in the published layout, each loaded by our own class and without remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from omnitune.io.weights import read_json, require_weights

from .files import require_finite
from .prompts import load_tokenizer
from .scheduler import OmniGen2DPMSolverScheduler, OmniGen2FlowMatchScheduler
from .transformer_omnigen2 import OmniGen2Transformer2DModel

# what the published folder's model_index.json says; our loader goes by the component names alone
PUBLISHED_INDEX: dict[str, Any] = {
    "_class_name": "OmniGen2Pipeline",
    "_diffusers_version": "0.33.1",
    "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "processor": ["transformers", "Qwen2_5_VLProcessor"],
    "scheduler": ["scheduling_flow_match_euler_discrete_time_shifting", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
COMPONENTS = ("transformer", "vae", "scheduler", "mllm", "processor")


def load_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer of a pipeline folder."""
    return read_transformer(Path(folder) / "transformer", torch_dtype)


def read_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer in a folder of its own, a converted one; ValueError for files that are damaged or not finite."""
    require_weights(folder)
    model = OmniGen2Transformer2DModel.from_pretrained(folder, torch_dtype=torch_dtype)
    require_finite(model.state_dict(), folder)
    return model


def load_vae(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE of a pipeline folder."""
    require_weights(Path(folder) / "vae")
    return AutoencoderKL.from_pretrained(Path(folder) / "vae", torch_dtype=torch_dtype)


def load_text_encoder(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> Any:
    """The Qwen2.5-VL of a pipeline folder, in the class that its config names, in evaluation mode."""
    import transformers
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

    source = Path(folder) / "mllm"
    require_weights(source)
    architectures = read_json(source / "config.json").get("architectures")
    model: Any = Qwen2_5_VLModel if architectures == ["Qwen2_5_VLModel"] else Qwen2_5_VLForConditionalGeneration
    transformers.utils.logging.disable_progress_bar()  # of a second's work
    return model.from_pretrained(source, dtype=torch_dtype, trust_remote_code=False).eval()


def load_scheduler(folder: str | Path) -> OmniGen2FlowMatchScheduler:
    """The scheduler of a pipeline folder: DPM-Solver where its config names ours, Euler for the published one."""
    source = Path(folder) / "scheduler"
    name = read_json(source / "scheduler_config.json").get("_class_name")
    scheduler = OmniGen2DPMSolverScheduler if name == "OmniGen2DPMSolverScheduler" else OmniGen2FlowMatchScheduler
    return scheduler.from_pretrained(source)


LOADERS: dict[str, Callable[[Path, torch.dtype], Any]] = {
    "transformer": load_transformer,
    "vae": load_vae,
    "mllm": load_text_encoder,
    "processor": lambda folder, dtype: load_tokenizer(folder),
    "scheduler": lambda folder, dtype: load_scheduler(folder),
}
