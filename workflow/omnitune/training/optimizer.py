"""Optimizers and their parameter groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from omnitune.config.choices import OPTIMIZERS
from omnitune.config.experiment.training import TrainOptions
from omnitune.models import OmniGen2TransformerBlock
from omnitune.training.schedules import peak_learning_rate


def check_optimizer(train: TrainOptions) -> None:
    """Raises ValueError where a library or device for the optimizer is missing, before anything is loaded."""
    if train.optimizer_name == "adamw_8bit":
        _require_8bit()
    if train.optimizer_name == "prodigy":
        try:
            import pytorch_optimizer  # noqa: F401
        except ImportError:
            raise ValueError(
                "train.optimizer: 'prodigy' needs pytorch-optimizer: type `pip install 'omnitune[prodigy]'`."
            ) from None


def _require_8bit() -> None:
    if not torch.cuda.is_available():
        raise ValueError("train.optimizer: 'adamw_8bit' needs a CUDA GPU. Take 'adamw'.")
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # a library for another CUDA fails in many ways
        raise ValueError(
            f"train.optimizer: 'adamw_8bit' needs bitsandbytes, which does not load ({error}). "
            "Type `pip install bitsandbytes`, or take 'adamw'."
        ) from None


def build_optimizers(
    model: nn.Module, train: TrainOptions, learning_rates: Mapping[str, float | None] | None = None
) -> list[Optimizer]:
    """The optimizers of a model that lies on its processes already; learning rates are set before each step.

    Every parameter group has `peak`, its peak learning rate as a multiple of `peak_learning_rate`.

    Args:
        model: its parameters with requires_grad are trained.
        train: which optimizer, with its keys.
        learning_rates: peak learning rates of parameters by name, where they have their own.
    """
    named = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    if train.optimizer_name != "muon":
        return [_build(train.optimizer_name, named, train, learning_rates)]
    matrices = _block_matrices(model)
    muon = {name: p for name, p in named.items() if id(p) in matrices}
    rest = {name: p for name, p in named.items() if id(p) not in matrices}
    parts = (("muon", muon), ("adamw", rest))
    return [_build(kind, part, train, learning_rates) for kind, part in parts if part]


def _build(
    kind: str, named: Mapping[str, nn.Parameter], train: TrainOptions, learning_rates: Mapping[str, float | None] | None
) -> Optimizer:
    optimizer: Optimizer = OPTIMIZERS[kind].load()(_groups(named, train, learning_rates), train)
    return optimizer


def _block_matrices(model: nn.Module) -> set[int]:
    """Ids of the matrices that Muon is made for: those of the blocks, not embeddings and outputs."""
    blocks = [module for module in model.modules() if isinstance(module, OmniGen2TransformerBlock)]
    return {id(p) for block in blocks for p in block.parameters() if p.ndim == 2}


def _groups(
    named: Mapping[str, nn.Parameter], train: TrainOptions, learning_rates: Mapping[str, float | None] | None
) -> list[dict[str, Any]]:
    peak = peak_learning_rate(train)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        own = (learning_rates or {}).get(name)
        scale = train.global_batch_size if train.scale_lr else 1
        groups.setdefault(1.0 if own is None else own * scale / peak, []).append(parameter)
    return [{"params": parameters, "lr": peak * factor, "peak": factor} for factor, parameters in groups.items()]


def adamw(groups: list[dict[str, Any]], train: TrainOptions) -> Optimizer:
    """torch's, fused."""
    return torch.optim.AdamW(groups, **_adam_keys(train), fused=True)


def adamw_8bit(groups: list[dict[str, Any]], train: TrainOptions) -> Optimizer:
    """bitsandbytes' with moments in 8 bits."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **_adam_keys(train))


def adafactor(groups: list[dict[str, Any]], train: TrainOptions) -> Optimizer:
    """torch's, with factored second moments."""
    return torch.optim.Adafactor(groups, weight_decay=train.adam_weight_decay)


def prodigy(groups: list[dict[str, Any]], train: TrainOptions) -> Optimizer:
    """pytorch-optimizer's, which finds its step size by itself."""
    from pytorch_optimizer import Prodigy

    betas = (train.adam_beta1, train.adam_beta2)
    return Prodigy(groups, betas=betas, weight_decay=train.adam_weight_decay, eps=train.adam_epsilon)


def muon(groups: list[dict[str, Any]], train: TrainOptions) -> Optimizer:
    """torch's, for matrices."""
    # With this adjustment the learning rate and the weight decay of AdamW serve both.
    return torch.optim.Muon(
        groups, momentum=train.muon_momentum, weight_decay=train.adam_weight_decay, adjust_lr_fn="match_rms_adamw"
    )


def _adam_keys(train: TrainOptions) -> dict[str, Any]:
    betas = (train.adam_beta1, train.adam_beta2)
    return {"betas": betas, "weight_decay": train.adam_weight_decay, "eps": train.adam_epsilon}


def update(optimizers: list[Optimizer], learning_rate: float) -> None:
    """One step of all optimizers at a learning rate, each group's own factor applied."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["peak"]
        optimizer.step()


def clear_gradients(optimizers: list[Optimizer]) -> None:
    """Frees all gradients."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


class LossScale:
    """Factor on the loss that keeps the gradients of float16 from underflow; 1 with other precisions.

    Halves when gradients overflow, doubles after 2000 steps without (mixed precision training, arXiv 1710.03740).
    """

    GROWTH_STEPS = 2000

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = 65536.0 if enabled else 1.0
        self.good_steps = 0

    def overflowed(self) -> bool:
        """After a step without finite gradients: halves the scale; False where that cannot help."""
        if self.value <= 1.0:
            return False
        self.value /= 2
        self.good_steps = 0
        return True

    def succeeded(self) -> None:
        """After a step with finite gradients."""
        self.good_steps += 1
        if self.enabled and self.good_steps % self.GROWTH_STEPS == 0:
            self.value *= 2

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"loss_scale": self.value, "good_steps": self.good_steps} if self.enabled else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.value, self.good_steps = state.get("loss_scale", self.value), state.get("good_steps", 0)
