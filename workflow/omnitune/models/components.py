"""The parts of a pipeline folder in the published layout, each loaded by our own class and without remote code."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from omnitune.io.json_object import read_json
from omnitune.io.model_files.part_configs import read_part
from omnitune.io.model_files.weights import read_header, require_weights
from omnitune.models.files import load_whole, loading, require_finite
from omnitune.models.scheduler import OmniGen2DPMSolverScheduler, OmniGen2FlowMatchScheduler
from omnitune.models.text.prompts import load_tokenizer
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Transformer2DModel

COMPONENTS = ("transformer", "vae", "scheduler", "mllm", "processor")


def require_parts(folder: Path, parts: Sequence[str]) -> None:
    """Raises FileNotFoundError for a part that a pipeline folder lacks."""
    for part in parts:
        if not (folder / part).exists():
            raise FileNotFoundError(
                f"{folder} has no {part}: a pipeline folder holds model_index.json, {', '.join(COMPONENTS)}"
            )


def load_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer of a pipeline folder."""
    return read_transformer(Path(folder) / "transformer", torch_dtype)


def read_transformer(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> OmniGen2Transformer2DModel:
    """The transformer in a folder of its own; ValueError for files that are damaged, not finite, or lack a tensor."""
    require_weights(folder)
    read_part(Path(folder), "transformer")
    config = OmniGen2Transformer2DModel.load_config(folder)
    _require_sizes(Path(folder), lambda: OmniGen2Transformer2DModel.from_config(config))
    model = load_whole(OmniGen2Transformer2DModel, Path(folder), torch_dtype=torch_dtype)
    require_finite(model.state_dict(), folder)
    return model


def load_vae(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE of a pipeline folder."""
    source = Path(folder) / "vae"
    require_weights(source)
    read_part(source, "vae")
    config = AutoencoderKL.load_config(source)
    _require_sizes(source, lambda: AutoencoderKL.from_config(config))
    return load_whole(AutoencoderKL, source, torch_dtype=torch_dtype)


def load_text_encoder(folder: str | Path, torch_dtype: torch.dtype = torch.float32) -> Any:
    """The Qwen2.5-VL of a pipeline folder, in the class that its config names, in evaluation mode."""
    import transformers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

    source = Path(folder) / "mllm"
    require_weights(source)
    architectures = read_part(source, "mllm").get("architectures")
    model: Any = Qwen2_5_VLModel if architectures == ["Qwen2_5_VLModel"] else Qwen2_5_VLForConditionalGeneration
    transformers.utils.logging.disable_progress_bar()  # of a second's work
    with loading(source):
        config = Qwen2_5_VLConfig.from_pretrained(source, trust_remote_code=False)
    _require_sizes(source, lambda: model(config))
    return load_whole(model, source, dtype=torch_dtype, trust_remote_code=False).eval()


def _require_sizes(folder: Path, build: Callable[[], nn.Module]) -> None:
    """ValueError where the model of a config has far more numbers than its files; built without memory for them.

    The library would make those that no file holds, in memory of any size.
    """
    with loading(folder), torch.device("meta"):
        empty = build()
    asked = sum(parameter.numel() for parameter in empty.parameters())
    shapes = [found for path in folder.glob("*.safetensors") for found in read_header(path).shapes.items()]
    held = sum(math.prod(shape) for _, shape in shapes)
    if asked > 2 * held:  # some are used twice, and stand in the files once
        raise ValueError(
            f"{folder / 'config.json'}: asks for {asked} numbers, and the weights beside it hold {held}. It is of "
            "another model: take the file from where the weights are from."
        )
    wanted = {_in_files(name): list(tensor.shape) for name, tensor in empty.state_dict().items()}
    for name, shape in shapes:
        expected = wanted.get(_in_files(name), shape)
        if shape != expected:
            raise ValueError(
                f"{folder}: {name} has the shape {shape}, and config.json asks for {expected}. One of the two is of "
                "another model: take both from one place."
            )


def _in_files(name: str) -> str:
    """A tensor's name by which a text encoder's files and its class can be compared; files have shorter ones."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def load_scheduler(folder: str | Path) -> OmniGen2FlowMatchScheduler:
    """The scheduler of a pipeline folder: DPM-Solver where its config names ours, Euler for the published one."""
    source = Path(folder) / "scheduler"
    name = read_part(source, "scheduler").get("_class_name")
    scheduler = OmniGen2DPMSolverScheduler if name == "OmniGen2DPMSolverScheduler" else OmniGen2FlowMatchScheduler
    with loading(source):
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
    """model_index.json of a pipeline folder, by the classes that its parts are of; our loader goes by their names.

    Transformer and scheduler are named by the module beside them, as in the published repository, where there is one,
    and otherwise by the published package, which the published script has: so it loads the folder.
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
