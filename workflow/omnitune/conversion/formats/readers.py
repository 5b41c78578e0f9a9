"""How the programs that weights are for read an adapter's file: their names of tensors and their scale.

Written from what these programs do, not from what our own loader does, so that a verification is by another reader.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from omnitune.conversion.tensors import State, open_safetensors
from omnitune.paths import ADAPTER_FILE, COMFYUI_ADAPTER_FILE, PEFT_CONFIG_FILE, PEFT_FILE


@dataclass(frozen=True)
class Factors:
    """What a program makes of a module's adapter: the change is scale x up x down, and of DoRA, a magnitude."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None

    def output(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] through weight [out, in] with the adapter: [n, out], in float64."""
        change = self.scale * (self.up.double() @ self.down.double())
        if self.magnitude is not None:
            changed = weight + change
            return x @ (changed * (self.magnitude.double() / changed.norm(dim=1))[:, None]).T
        return x @ weight.T + x @ change.T


Pairs = Iterator[tuple[str, Factors]]


def published_code(folder: Path) -> Pairs:
    """The published script: `transformer.` names, no metadata; alpha is the rank."""
    yield from _named(open_safetensors(folder / ADAPTER_FILE), "transformer.", lambda module, rank: 1.0)


def diffusers(folder: Path) -> Pairs:
    """diffusers' load_lora_adapter: the same names, and the scale of the metadata."""
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        found = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    said = {key.removeprefix("transformer."): value for key, value in found.items()}
    yield from _named(open_safetensors(folder / ADAPTER_FILE), "transformer.", lambda _, rank: _scale(said, rank))


def peft(folder: Path) -> Pairs:
    """PeftModel.from_pretrained: its own prefix, and the scale of adapter_config.json."""
    said = json.loads((folder / PEFT_CONFIG_FILE).read_text(encoding="utf-8"))
    yield from _named(open_safetensors(folder / PEFT_FILE), "base_model.model.", lambda _, rank: _scale(said, rank))


def comfyui(folder: Path) -> Pairs:
    """ComfyUI's LoRA loader: `diffusion_model.` names, the scale is .alpha / rank, 1 without it."""
    state = open_safetensors(folder / COMFYUI_ADAPTER_FILE)

    def scale(module: str, rank: int) -> float:
        alpha = state.get(f"diffusion_model.{module}.alpha")
        return 1.0 if alpha is None else float(alpha.load()) / rank

    yield from _named(state, "diffusion_model.", scale)


READERS: dict[str, Callable[[Path], Pairs]] = {
    "published code": published_code,
    "diffusers": diffusers,
    "peft": peft,
    "ComfyUI": comfyui,
}


def _scale(said: dict[str, float], rank: int) -> float:
    alpha = said.get("lora_alpha", rank)
    return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _named(state: State, prefix: str, scale: Callable[[str, int], float]) -> Pairs:
    for name in sorted(state):
        if not name.startswith(prefix) or not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        down, up = state[name].load(), state[f"{stem}.lora_B.weight"].load()
        magnitude = state.get(f"{stem}.lora_magnitude_vector")
        module = stem.removeprefix(prefix)
        yield module, Factors(down, up, scale(module, down.shape[0]), magnitude.load() if magnitude else None)
