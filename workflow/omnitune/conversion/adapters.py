"""The arithmetic of adapters: their scale folded into a factor, and their effect merged into the weights under them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from omnitune.conversion.tensors import LazyTensor, State
from omnitune.models.lora.lora import FACTORS, MAGNITUDE, adapted_modules, adapter_alphas, adapter_scale


@dataclass(frozen=True)
class Adapter:
    """An adapter, as its training computes with it.

    Attributes:
        tensors: named `<module>.lora_A.weight` [r, in], `<module>.lora_B.weight` [out, r] and, of DoRA,
            `<module>.lora_magnitude_vector` [out].
        alphas: alpha of each module.
        use_rslora: whether the scale is alpha / sqrt(r) instead of alpha / r.
    """

    tensors: State
    alphas: Mapping[str, float]
    use_rslora: bool = False

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> "Adapter":
        """One that `omnitune.models.read_lora` has read."""
        lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
        return cls(lazy, adapter_alphas(config), config["use_rslora"])

    @cached_property
    def modules(self) -> list[str]:
        """Names of what it adapts, sorted."""
        return sorted(adapted_modules(self.tensors))

    @property
    def use_dora(self) -> bool:
        """Whether it is a DoRA."""
        return any(name.endswith(MAGNITUDE) for name in self.tensors)

    def rank(self, module: str) -> int:
        """Width of a module's factors."""
        return self.tensors[module + FACTORS[0]].shape[0]

    def scale(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        return adapter_scale(self.alphas[module], self.rank(module), self.use_rslora)

    def part(self, module: str, end: str, dtype: torch.dtype) -> torch.Tensor:
        """One of a module's tensors."""
        return self.tensors[module + end].load().to(dtype)


def folded(adapter: Adapter) -> Adapter:
    """The same adapter with a scale of 1: each lora_B holds it, alpha is the rank."""
    tensors = dict(adapter.tensors)
    for module in adapter.modules:
        scale, lazy = adapter.scale(module), tensors[module + FACTORS[1]]
        if scale != 1:
            tensors[module + FACTORS[1]] = LazyTensor.computed(lazy.shape, lazy.dtype, partial(_scaled, lazy, scale))
    return Adapter(tensors, {module: adapter.rank(module) for module in adapter.modules})


def _scaled(lazy: LazyTensor, scale: float) -> torch.Tensor:
    return (lazy.load().float() * scale).to(lazy.dtype)


def merged(base: State, adapters: Sequence[tuple[Adapter, float]]) -> State:
    """A transformer's weights with adapters in them: W + the sum of strength x (W with one adapter - W), in float32.

    Args:
        base: the transformer's, by name.
        adapters: each with its strength; modules that they adapt must be in `base`.
    """
    state = dict(base)
    for module in sorted({module for adapter, _ in adapters for module in adapter.modules}):
        name = f"{module}.weight"
        own = [(adapter, strength) for adapter, strength in adapters if module in adapter.modules]
        load = partial(_merged, base[name], module, own)
        state[name] = LazyTensor.computed(base[name].shape, torch.float32, load)
    return state


def _merged(lazy: LazyTensor, module: str, adapters: Sequence[tuple[Adapter, float]]) -> torch.Tensor:
    weight = lazy.load().float()
    total = weight.clone()
    for adapter, strength in adapters:
        a, b = (adapter.part(module, end, torch.float32) for end in FACTORS)
        change = adapter.scale(module) * (b @ a)
        if module + MAGNITUDE in adapter.tensors:  # arXiv 2402.09353, equation 5
            direction = weight + change
            magnitude = adapter.part(module, MAGNITUDE, torch.float32) / direction.norm(dim=1)
            change = magnitude[:, None] * direction - weight
        total += strength * change
    return total


def peft_layer(weight: torch.Tensor, adapter: Adapter, module: str) -> Any:
    """A linear layer of this weight with the module's adapter as peft computes it, in float64: what was trained."""
    features_out, features_in = weight.shape
    linear = nn.Linear(features_in, features_out, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight)
    dora = module + MAGNITUDE in adapter.tensors
    config = LoraConfig(
        r=adapter.rank(module),
        lora_alpha=adapter.alphas[module],  # type: ignore[arg-type]
        use_rslora=adapter.use_rslora,
        use_dora=dora,
        target_modules=["layer"],
    )
    holder: Any = inject_adapter_in_model(config, nn.ModuleDict({"layer": linear}))
    layer = holder["layer"]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(adapter.part(module, FACTORS[0], torch.float64))
        layer.lora_B["default"].weight.copy_(adapter.part(module, FACTORS[1], torch.float64))
        if dora:
            layer.lora_magnitude_vector["default"].weight.copy_(adapter.part(module, MAGNITUDE, torch.float64))
    return layer
