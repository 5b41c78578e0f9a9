"""What ComfyUI loads: a model in one file, or an adapter whose scale stands in a tensor beside each pair of factors."""

from collections.abc import Mapping
from pathlib import Path

import torch

from omnitune.conversion.adapters import Adapter
from omnitune.conversion.tensors import Digest, LazyTensor, State, write_safetensors
from omnitune.paths import COMFYUI_ADAPTER_FILE, COMFYUI_MODEL_FILE

COMFYUI_PREFIX = "diffusion_model."
ALPHA = ".alpha"


def write_model(folder: Path, state: State) -> dict[str, Digest]:
    """Writes the weights under their published names, by which ComfyUI knows the architecture; returns what was due."""
    return write_safetensors(folder / COMFYUI_MODEL_FILE, state)


def write_adapter(folder: Path, adapter: Adapter, facts: Mapping[str, str]) -> None:
    """Writes an adapter that is no DoRA, `facts` in its header; there, a scale is alpha / rank, and 1 without alpha."""
    assert not adapter.use_dora
    tensors = {COMFYUI_PREFIX + name: tensor for name, tensor in adapter.tensors.items()}
    for module in adapter.modules:
        alpha = torch.tensor(adapter.scale(module) * adapter.rank(module), dtype=torch.float32)
        tensors[f"{COMFYUI_PREFIX}{module}{ALPHA}"] = LazyTensor.of(alpha)
    write_safetensors(folder / COMFYUI_ADAPTER_FILE, tensors, facts)
