"""The parts of a pipeline folder in the published layout, each loaded by our own class and without remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from omnitune.io.weights import read_header, read_json, require_weights

from .files import require_finite
from .prompts import load_tokenizer
from .scheduler import OmniGen2DPMSolverScheduler, OmniGen2FlowMatchScheduler
from .transformer_omnigen2 import OmniGen2Transformer2DModel

COMPONENTS = ("transformer", "vae", "scheduler", "mllm", "processor")


def load_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer of a pipeline folder."""
    return read_transformer(Path(folder) / "transformer", torch_dtype)


def read_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer in a folder of its own; ValueError for files that are damaged, not finite, or lack a tensor."""
    require_weights(folder)
    found = {name for path in Path(folder).glob("*.safetensors") for name in read_header(path).shapes}
    model = OmniGen2Transformer2DModel.from_pretrained(folder, torch_dtype=torch_dtype)
    lost = sorted(model.state_dict().keys() - found)  # the library would leave these at random
    if found and lost:
        raise ValueError(f"{folder}: its files lack {len(lost)} tensors of the model, such as {', '.join(lost[:3])}.")
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


# Class of the published code, the module that its repository has beside the part, and where its package has it.
PUBLISHED_CLASSES = {
    "transformer": (
        "OmniGen2Transformer2DModel",
        "transformer_omnigen2",
        "omnigen2.models.transformers.transformer_omnigen2",
    ),
    "euler": (
        "FlowMatchEulerDiscreteScheduler",
        "scheduling_flow_match_euler_discrete_time_shifting",
        "omnigen2.schedulers.scheduling_flow_match_euler_discrete",
    ),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        "scheduling_dpmsolver_multistep",
        "omnigen2.schedulers.scheduling_dpmsolver_multistep",
    ),
}


def model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder, by the classes that its parts are of; our loader goes by their names alone.

    Transformer and scheduler are named by the module beside them, as in the published repository, where there is one,
    and
    otherwise by the published package, which the published script has: so it loads the folder.
    """
    config = read_json(folder / "mllm" / "config.json")
    [mllm] = config.get("architectures") or ["Qwen2_5_VLForConditionalGeneration"]
    whole = (folder / "processor" / "preprocessor_config.json").is_file()
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = "dpmsolver" if "DPMSolver" in scheduler.get("_class_name", "") else "euler"
    return {
        "_class_name": "OmniGen2Pipeline",
        "_diffusers_version": "0.33.1",
        "mllm": ["transformers", mllm],
        "processor": ["transformers", "Qwen2_5_VLProcessor" if whole else "Qwen2TokenizerFast"],
        "scheduler": _published_class(folder / "scheduler", kind),
        "transformer": _published_class(folder / "transformer", "transformer"),
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _published_class(part: Path, kind: str) -> list[str]:
    name, beside, module = PUBLISHED_CLASSES[kind]
    return [beside if (part / f"{beside}.py").is_file() else module, name]


LOADERS: dict[str, Callable[[Path, torch.dtype], Any]] = {
    "transformer": load_transformer,
    "vae": load_vae,
    "mllm": load_text_encoder,
    "processor": lambda folder, dtype: load_tokenizer(folder),
    "scheduler": lambda folder, dtype: load_scheduler(folder),
}
