"""The transformer that is trained: its starting weights, what of it is trained, and how its blocks run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import TrainOptions, trained_names
from omnitune.distributed.parallel import COMPUTE_DTYPES
from omnitune.models import read_transformer
from omnitune.models.lora.dropout import DropoutSeeds, use_sample_dropout
from omnitune.models.transformer.attention import candidates
from omnitune.training.adapter import load_starting_adapter, lora_config_of
from omnitune.training.architecture import require_architecture


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


def build_model(options: ExperimentOptions, folder: Path, device: torch.device) -> Trained:
    """Loads the starting weights and makes of them what is trained on a device; the same on every process.

    Raises ValueError where the weights are not those of the options, names in these fit nothing, or the device lacks
    what they ask for.
    """
    train = options.train
    torch.manual_seed(options.seed)  # adapters start equal on every process
    model: Any = read_transformer(folder)
    require_architecture(model.config, options, folder)
    learning_rates = select_trained(model, train)
    lora, dropout = _prepare_adapter(model, train) if train.lora_ft else (None, None)
    require_kernel(train, model.heads, device)
    model.attention = train.attention
    model.runs_all_modules = True
    if train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
        model.gradient_checkpointing_every = train.gradient_checkpointing_every
    if train.fp8:
        from omnitune.models.transformer.float8 import convert_to_float8

        convert_to_float8(model)
    if train.compile:
        model.compile_blocks()
    return Trained(model.train(), learning_rates, lora, dropout)


def select_trained(model: Any, train: TrainOptions) -> dict[str, float | None]:
    """Sets requires_grad on what the options train and on nothing else; where that is an adapter, adds it.

    Frozen matrices are then held in the dtype of products, see `hold_frozen`.

    Args:
        model: the transformer, on any device, the meta device included.
        train: decides what is trained.

    Returns:
        Peak learning rates by parameter name, None for train.learning_rate; empty with an adapter, which has but that
        one.

    Raises:
        ValueError: for parameters or layers that the model does not have.
    """
    if train.lora_ft:
        model.requires_grad_(False)
        model.add_adapter(lora_config_of(train, model))
        for module in model.modules():
            if isinstance(module, LoraLayer):  # a copy of the states in float32, which autocast would undo
                module.cast_input_dtype_enabled = False
        rates = {}
    else:
        rates = trained_names([name for name, _ in model.named_parameters()], train.parameter_groups)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in rates)
    hold_frozen(model, COMPUTE_DTYPES[train.mixed_precision])
    return rates


def hold_frozen(model: Any, dtype: torch.dtype) -> None:
    """Holds the frozen matrices of a model in `dtype`; vectors and all that is trained stay as they are.

    In the dtype of the products this changes no number: autocast makes the same copy of each matrix at each use.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)


def require_kernel(train: TrainOptions, heads: tuple[int, int, int], device: torch.device) -> None:
    """Raises ValueError where train.attention names a kernel that a device does not have for such heads."""
    names = candidates(device, COMPUTE_DTYPES[train.mixed_precision], heads)
    if train.attention not in {"auto", *names}:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type!r}"
        raise ValueError(
            f"train.attention: {train.attention!r} does not run on {where} with heads of {heads[2]} channels and "
            f"mixed_precision: {train.mixed_precision!r}; what does: {', '.join(names)}. Take 'auto'."
        )


def _prepare_adapter(model: Any, train: TrainOptions) -> tuple[dict[str, Any], DropoutSeeds | None]:
    """Loads what a new adapter starts from, gives it its dropout; returns what checkpoints say of it, and seeds."""
    if train.lora_path:
        load_starting_adapter(model, train)
    dropout = use_sample_dropout(model, train.lora_dropout) if train.lora_dropout else None
    config = model.peft_config["default"]
    lora = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules or ()),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    return lora, dropout
