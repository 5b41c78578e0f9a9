"""The LoRA adapter that the options ask for: its config, and the published one that its training may start from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from omnitune.config.experiment.training import TrainOptions
from omnitune.models.lora.base_fingerprint import model_fingerprint, warn_of_other_base
from omnitune.models.lora.lora import (
    FACTORS,
    MAGNITUDE,
    TARGET_MODULES,
    adapted_modules,
    adapter_alphas,
    adapter_scale,
    linear_names,
    lora_config,
    lora_state_dict,
    read_factors,
    read_lora_header,
    resolve_targets,
)
from omnitune.paths import starting_adapter_file


def lora_config_of(train: TrainOptions, model: Any) -> LoraConfig:
    """The adapter's config that the options say, for a model without adapters; ValueError as of resolve_targets."""
    targets = train.lora_target_modules
    return lora_config(
        train.lora_rank,
        train.lora_alpha,
        train.lora_dropout,
        # whole names, as a library's ends of names may fit what is no linear layer
        TARGET_MODULES if targets is None else resolve_targets(model, targets),
        train.lora_use_dora,
        train.lora_use_rslora,
    )


def load_starting_adapter(model: Any, train: TrainOptions) -> None:
    """Load the adapter at train.lora_path into the new adapter 'default' of a model that is not sharded yet.

    It starts with the effect that it has by its own alpha, over weights that it was trained over or, with a warning,
    over others; lora_B is brought to the scale that the options ask for.

    Raises:
        ValueError: where there is none, or where rank, targets or kind differ from the options.
    """
    assert train.lora_path is not None
    path = starting_adapter_file(train.lora_path)
    found = read_lora_header(path, modules=linear_names(model))
    tensors, own = read_factors(found), lora_state_dict(model)
    _require_same_adapter(path, tensors, own, train)
    warn_of_other_base(path, found.base, model_fingerprint(model) if found.base else None)
    alphas = adapter_alphas(found.config)
    rank, found_rslora = train.lora_rank, found.config["use_rslora"]
    asked = adapter_scale(train.lora_alpha or rank, rank, train.lora_use_rslora)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
            if name.endswith(FACTORS[1]):
                tensor.mul_(adapter_scale(alphas[name.removesuffix(FACTORS[1])], rank, found_rslora) / asked)


def _require_same_adapter(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    train: TrainOptions,
) -> None:
    """Raises ValueError where an adapter is not of the kind, the modules and the sizes that the options ask for."""
    ranks = sorted({tensor.shape[0] for name, tensor in tensors.items() if name.endswith(FACTORS[0])})
    for key, asked, found in (
        ("lora_use_dora", train.lora_use_dora, any(name.endswith(MAGNITUDE) for name in tensors)),
        ("lora_rank", train.lora_rank, ranks[0] if len(ranks) == 1 else ranks),
    ):
        if asked != found:
            raise ValueError(
                f"train.{key}: {asked!r}, but the adapter of train.lora_path, {path}, has {found!r}. "
                "Make them equal or start from another adapter."
            )
    wanted, there = adapted_modules(own), adapted_modules(tensors)
    if wanted != there:
        raise ValueError(
            f"train.lora_target_modules: asks for {len(wanted)} modules, the adapter of train.lora_path, {path}, has "
            f"{len(there)}; only asked for: {_some(wanted - there)}; only in the adapter: {_some(there - wanted)}. "
            "Make them equal or start from another adapter."
        )
    wrong = [name for name, tensor in own.items() if tensor.shape != tensors[name].shape]
    if wrong:
        shapes = f"{list(tensors[wrong[0]].shape)}, needs {list(own[wrong[0]].shape)}"
        raise ValueError(f"train.lora_path: {path} belongs to a model of another size: {wrong[0]} is {shapes}.")


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"
