"""Processes and sharding: accelerate with FSDP2, and proof that it engaged."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Sharding:
    """How the parameters lie over the processes.

    Attributes:
        strategy: "fsdp" or "single".
        world_size: number of processes.
        parameters: parameters of the whole model.
        trainable: trainable parameters of the whole model.
        local: parameters that this process holds.
    """

    strategy: str
    world_size: int
    parameters: int
    trainable: int
    local: int

    def __str__(self) -> str:
        share = 100 * self.local / self.parameters
        return (
            f"strategy {self.strategy}, {self.world_size} processes, {self.parameters:,} parameters of which "
            f"{self.trainable:,} are trained; this process holds {self.local:,} ({share:.1f} %)"
        )


def build_accelerator(mixed_precision: str) -> Accelerator:
    """The accelerator of a launched process.

    accelerate never engages FSDP on CPU by itself and falls back to DDP or lone processes without a word. Where there
    is no accelerator and several processes were launched, its choice of backend is therefore replaced by gloo.
    """
    if not _has_accelerator() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState._prepare_backend = _gloo_backend
    plugin = None
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        # Inputs keep their precision (a time in bf16 would be off by 0.4 %); the loop's autocast does the casting.
        compute = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=policy)
    return Accelerator(mixed_precision=mixed_precision, fsdp_plugin=plugin)


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _gloo_backend(state: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer, Sharding]:
    """Shards model and optimizer and checks that sharding engaged.

    Raises:
        RuntimeError: if several processes run without FSDP or the parameters are not spread over them.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    world_size = accelerator.num_processes
    if world_size == 1:
        return model.to(accelerator.device), optimizer, Sharding("single", 1, parameters, trainable, parameters)
    if accelerator.distributed_type != DistributedType.FSDP:
        raise RuntimeError(
            f"{world_size} processes were launched but accelerate chose {accelerator.distributed_type}, not FSDP."
        )
    model, optimizer = accelerator.prepare(model, optimizer)
    local = sum(_local_numel(p) for p in model.parameters())
    # Each parameter is cut along its first axis, so a rank may hold up to one row per parameter more than its share.
    slack = sum(p.numel() // max(p.shape[0], 1) for p in model.parameters() if p.dim())
    if local > parameters / world_size + slack:
        raise RuntimeError(f"FSDP left {local:,} of {parameters:,} parameters on this process of {world_size}.")
    return model, optimizer, Sharding("fsdp", world_size, parameters, trainable, local)


def _local_numel(parameter: Any) -> int:
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all processes, in place."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clips the gradients to a global norm over all processes and returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm)
    full = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return float(full)
