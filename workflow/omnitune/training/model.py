"""The transformer that is trained: its starting weights, what of it is trained, and how its blocks run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnitune.config import ExperimentOptions
from omnitune.config.training import TrainOptions, trained_names
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora import load_starting_adapter, lora_config_of
from omnitune.models.lora_dropout import DropoutSeeds, use_sample_dropout


@dataclass(frozen=True)
class Trained:
    """A model to train, not yet put onto the processes.

    Attributes:
        model: the transformer, with requires_grad on what is trained.
        learning_rates: peak learning rates by parameter name, None for train.learning_rate.
        lora: what checkpoints say of the adapter; None without.
        dropout: where samples' seeds are set before a forward; None without LoRA dropout.
    """

    model: Any
    learning_rates: dict[str, float | None]
    lora: dict[str, Any] | None
    dropout: DropoutSeeds | None


def build_model(options: ExperimentOptions, folder: Path) -> Trained:
    """Loads the starting weights and makes of them what is trained; the same on every process.

    Raises ValueError where the weights are not those of the options, or names in these fit nothing.
    """
    train = options.train
    torch.manual_seed(options.seed)  # adapters start equal on every process
    model: Any = OmniGen2Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    check_architecture(model, options, folder)
    trained = _with_adapter(model, train) if train.lora_ft else _with_parameter_groups(model, train)
    model.runs_all_modules = True
    if train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
        model.gradient_checkpointing_every = train.gradient_checkpointing_every
    if train.fp8:
        from omnitune.models.float8 import convert_to_float8

        convert_to_float8(model)
    if train.compile:
        model.compile_blocks()
    model.train()
    return trained


def _with_adapter(model: Any, train: TrainOptions) -> Trained:
    model.requires_grad_(False)
    config = lora_config_of(train, model)
    model.add_adapter(config)
    if train.lora_path:
        load_starting_adapter(model, train)
    dropout = use_sample_dropout(model, train.lora_dropout) if train.lora_dropout else None
    lora = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules or ()),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    return Trained(model, {}, lora, dropout)


def _with_parameter_groups(model: Any, train: TrainOptions) -> Trained:
    rates = trained_names([name for name, _ in model.named_parameters()], train.parameter_groups)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in rates)
    return Trained(model, rates, None, None)


def check_architecture(model: Any, options: ExperimentOptions, folder: Path) -> None:
    """Raises ValueError if the weights have another architecture than model.arch_opt says."""
    if options.model.arch_opt is None:
        return
    config = dict(model.config)
    lines = []
    for key, asked in options.model.arch_opt.model_dump().items():
        found = config.get(key)
        if (tuple(found) if isinstance(found, list) else found) != asked:
            lines.append(f"model.arch_opt.{key}: {asked!r} is not what the weights have: {found!r}")
    if lines:
        raise ValueError("\n  - ".join([f"{folder / 'config.json'} does not fit the options:", *lines]))
