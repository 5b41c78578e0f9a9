"""Processes and how they share the model: FSDP2 and hybrid sharding through accelerate, DDP, and proof of it."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, ParallelismConfig
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from omnitune.config.experiment.training import TrainOptions
from omnitune.distributed.layout import SHARDED, Layout

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


class SharedError(ValueError):
    """A mistake that stops all processes at once; each raises it, and the first of a node tells it."""


@dataclass(frozen=True)
class Sharding:
    """How the parameters lie over the processes.

    Attributes:
        layout: the strategy and its sizes.
        parameters: parameters of the whole model.
        trainable: trainable parameters of the whole model.
        local: parameters that this process holds.
    """

    layout: Layout
    parameters: int
    trainable: int
    local: int

    def __str__(self) -> str:
        share = 100 * self.local / self.parameters
        copies = self.layout.world_size // self.layout.shard_size
        replicas = f" ({copies} replicas)" if self.layout.strategy == "hsdp" else ""
        return (
            f"strategy {self.layout.strategy}, {self.layout.world_size} processes{replicas}, {self.parameters:,} "
            f"parameters of which {self.trainable:,} are trained; this process holds {self.local:,} ({share:.1f} %)"
        )


def build_accelerator(train: TrainOptions, layout: Layout) -> Accelerator:
    """The accelerator of a launched process.

    accelerate never engages FSDP on CPU by itself and falls back to DDP or lone processes without a word. Where there
    is no accelerator and several processes were launched, its choice of backend is therefore replaced by gloo.
    """
    if not _has_accelerator() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState._prepare_backend = _gloo_backend
    if layout.strategy not in SHARDED:
        return Accelerator()
    # Inputs keep their precision (a time in bf16 would be off by 0.4 %); the loop's autocast does the casting.
    compute = COMPUTE_DTYPES[train.mixed_precision]
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if train.cpu_offload else None
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=policy, cpu_offload=offload)
    if layout.strategy == "fsdp":
        return Accelerator(fsdp_plugin=plugin)
    replicas = layout.world_size // layout.shard_size
    config = ParallelismConfig(dp_replicate_size=replicas, dp_shard_size=layout.shard_size)
    return Accelerator(fsdp_plugin=plugin, parallelism_config=config)


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _gloo_backend(state: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def prepare(accelerator: Accelerator, model: nn.Module, layout: Layout) -> tuple[nn.Module, Sharding]:
    """Puts the model onto the processes and checks that this happened as asked. Its parameters are other objects then.

    Raises:
        SharedError: if several processes run without the strategy, or parameters are not spread over them.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if layout.strategy == "single":
        model = model.to(accelerator.device)
    elif layout.strategy == "ddp":
        device = accelerator.device
        devices = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(model.to(device), device_ids=devices, gradient_as_bucket_view=True)
    else:
        # Nothing here works in place on what the model returns, which are parts of one tensor.
        warnings.filterwarnings("ignore", message=".*returned a view tensor")
        model = fsdp2_prepare_model(accelerator, model)
    local = sum(local_part(p).numel() for p in model.parameters())
    # Each parameter is cut along its first axis, so a rank may hold up to one row per parameter more than its share.
    slack = sum(p.numel() // max(p.shape[0], 1) for p in model.parameters() if p.dim())
    with together():
        if layout.strategy in SHARDED and local > parameters / layout.shard_size + slack:
            raise ValueError(
                f"FSDP left {local:,} of {parameters:,} parameters on a process of {layout.shard_size} that share them."
            )
    return model, Sharding(layout, parameters, trainable, local)


def check_engaged(accelerator: Accelerator, layout: Layout) -> None:
    """Raises ValueError where accelerate has made something else of the processes than was asked."""
    if accelerator.num_processes != layout.world_size:
        raise ValueError(
            f"{accelerator.num_processes} processes have found each other, not {layout.world_size}: "
            "start each node with the same --num_processes and --world_size, and another --rank."
        )
    engaged = accelerator.distributed_type == DistributedType.FSDP
    if engaged != (layout.strategy in SHARDED):
        raise ValueError(
            f"strategy {layout.strategy} was asked for, but accelerate chose {accelerator.distributed_type}."
        )


@contextmanager
def together() -> Iterator[None]:
    """A block without communication, after which all processes know whether one of them has failed in it.

    Raises:
        SharedError: in every process, with the message of the first that raised ValueError or OSError.
    """
    message = None
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
    first = next((found for found in gather(message) if found is not None), None)
    if first is not None:
        raise SharedError(first)


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Raises SharedError in every process, naming what differs, unless all of them know the same facts."""
    values: dict[str, dict[str, list[int]]] = {key: {} for key in facts}
    for rank, found in enumerate(gather(dict(facts))):
        for key, value in (found or {}).items():
            values.setdefault(key, {}).setdefault(repr(value), []).append(rank)
    differing = [
        f"{key}: " + " and ".join(f"{value} (process {', '.join(map(str, ranks))})" for value, ranks in seen.items())
        for key, seen in values.items()
        if len(seen) > 1
    ]
    if differing:
        raise SharedError("\n  - ".join(["the processes were started with different things:", *differing]))


def gather(value: Any) -> list[Any]:
    """What each process has, on every process; any object that pickles."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def unwrapped(model: nn.Module) -> Any:
    """The transformer inside; under FSDP it is the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def gradient_synchronisation(model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Around forward and backward of a microbatch: whether processes exchange gradients at its end."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
    elif isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    return nullcontext()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Norm of all gradients over all processes, a plain tensor of one element."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiplies all gradients by a factor."""
    gradients = [local_part(p.grad) for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def is_connection_error(error: BaseException) -> bool:
    """Whether a collective failed since another process is gone."""
    words = ("connection", "peer", "socket", "timed out", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
