"""Attention within the sequences of a packed batch: the kernels that there are, and which of them is fast where.

On Hopper (compute capability 9.0) cuDNN's kernel trains nearly twice as fast as flash attention 2, on other GPUs as
fast or slower. `fastest` finds out by a trial of both, in which a kernel that fails or computes something else is left
out.

cuDNN makes a plan for each length that is new, three in a training step (a forward with and one without gradients, a
backward), each of some 60 ms: with texts of any length this took longer than it won. So sequences are padded to
multiples of 128 tokens, for which there is soon a plan each.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from omnitune.models.transformer.packing import Packing

logger = logging.getLogger("omnitune")

HALF = (torch.bfloat16, torch.float16)
TRIAL_LENGTHS = (4200, 4500)  # tokens of two sequences, which cuDNN's kernel pads
TRIAL_TOLERANCE = 0.02  # of the norm of a result; rounding to bfloat16 is below 0.01
MARGIN = 1.2  # how much faster a kernel must be than the first: by less, trials of two processes could differ
MARKS = 8  # channels more that tell padding from tokens; cuDNN's heads are multiples of 8, up to 128
PADDING = -(2.0**15)  # of a key in these channels: the exponential of such a score is zero in any precision
PADDED_BACKEND = SDPBackend.CUDNN_ATTENTION  # and no other: what is called cudnn runs it or fails

Shape = tuple[int, int, int]  # heads of queries, heads of keys and values, channels of a head
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing], torch.Tensor]


def attend_per_sample(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Sequence by sequence with torch's choice of kernel; one call per run of equal lengths. Any dtype, any device."""
    if query.is_cuda and query.dtype == torch.float32:
        # grouped heads would fall back to the kernel that stores all [length, length] scores
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    sizes = [count * length for count, length in packing.runs]
    outputs = []
    for run, *parts in zip(packing.runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (part.unflatten(0, run).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The same by cuDNN, each sequence padded to a multiple of 128 tokens; exact, as padding gets no weight at all.

    A mask would take cuDNN's fast kernel away. Instead heads are widened by channels in which queries are 1 and keys 0,
    or far below 0 where they are padding.
    """
    head_dim = query.shape[-1]
    wide = (
        _padded(query, packing, marks=1.0),
        _padded(key, packing, marks=0.0, padding=PADDING),
        _padded(value, packing, marks=0.0),
    )
    outputs = []
    with sdpa_kernel(PADDED_BACKEND):
        for length, *parts in zip(packing.lengths, *(t.split(packing.padded) for t in wide), strict=True):
            q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in parts)
            grouped = k.shape[1] != q.shape[1]
            attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, scale=head_dim**-0.5)
            outputs.append(attended[0, :, :length, :head_dim].transpose(0, 1))
    return torch.cat(outputs)


def _padded(states: torch.Tensor, packing: Packing, *, marks: float, padding: float = 0.0) -> torch.Tensor:
    """Packed states [tokens, heads, head_dim] with padding between: [padded tokens, heads, head_dim + MARKS]."""
    empty = states.new_zeros(sum(packing.padded), *states.shape[1:])
    wide = (F.pad(empty, (0, MARKS), value=padding), F.pad(states, (0, MARKS), value=marks))
    return wide[0].index_copy(0, packing.slots, wide[1])


def attend_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """All sequences in one call of flash attention; bfloat16 or float16 on CUDA."""
    starts, longest = packing.cu_seqlens, packing.longest
    grouped = _grouped(query, key)
    return varlen_attn(query, key, value, starts, starts, longest, longest, **grouped)  # type: ignore[return-value]


def _grouped(query: torch.Tensor, key: torch.Tensor) -> dict[str, Any]:
    """Says that heads are grouped, where varlen_attn wants to know: before torch 2.12 it takes them as they are."""
    return {"enable_gqa": query.shape[1] != key.shape[1]} if ASKS_FOR_GROUPS else {}


ASKS_FOR_GROUPS = "enable_gqa" in (varlen_attn.__kwdefaults__ or {})

KERNELS: dict[str, Kernel] = {
    # torch.compile would compile these anew for each list of runs
    "per_sample": torch.compiler.disable(attend_per_sample),
    "cudnn": torch.compiler.disable(attend_cudnn),
    "varlen": attend_varlen,
}


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Attention of [tokens, heads, head_dim] within each sequence, by the kernel that the packing names."""
    return KERNELS[packing.kernel](query, key, value, packing)


def candidates(device: torch.device, dtype: torch.dtype, shape: Shape) -> list[str]:
    """The kernels for such heads on a device, the one that `auto` takes where none is much faster first."""
    head_dim = shape[2]
    if device.type != "cuda" or dtype not in HALF or head_dim % 8 or head_dim > 256:
        return ["per_sample"]
    if torch.cuda.get_device_capability(device) < (8, 0):
        return ["per_sample"]
    return ["varlen", *(["cudnn"] if head_dim <= 128 - MARKS else []), "per_sample"]


@functools.cache
def fastest(device: torch.device, dtype: torch.dtype, shape: Shape) -> str:
    """The kernel of `auto`: found once per process for a device, a dtype and heads; the log tells of a choice.

    Args:
        device: of the states.
        dtype: of the products.
        shape: heads of queries, heads of keys and values, channels of a head.
    """
    tried = candidates(device, dtype, shape)[:-1]  # the last one runs everywhere
    seconds: dict[str, float] = {}
    for name in tried:
        try:
            seconds[name] = _trial(name, device, dtype, shape)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("attention: %s does not run here and is left out (%s)", name, reason)
    if not seconds:
        if tried:
            logger.info("attention by per_sample, as nothing else runs here")
        return "per_sample"
    found = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
    name = min(seconds, key=lambda name: seconds[name] * (1 if name == tried[0] else MARGIN))
    logger.info("attention by %s, by a trial of a layer's forward and backward: %s", name, found)
    return name


def _trial(name: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> float:
    """Seconds of a warm layer's attention, forward and backward; RuntimeError where it fails or is wrong."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        positions = [(number, torch.zeros(length, 3, dtype=torch.int64)) for number, length in enumerate(TRIAL_LENGTHS)]
        packing = Packing(positions, (2, 2, 2), device, name)
        query, key, value, gradient = (
            torch.randn(sum(TRIAL_LENGTHS), heads, shape[2], device=device, dtype=dtype, generator=generator)
            for heads in (shape[0], shape[1], shape[1], shape[0])
        )
        states = [tensor.requires_grad_() for tensor in (query, key, value)]

        def learnt(name: str) -> list[torch.Tensor]:
            output = KERNELS[name](states[0], states[1], states[2], packing)
            return [output.detach(), *torch.autograd.grad(output, states, gradient)]

        for found, expected in zip(learnt(name), learnt("per_sample"), strict=True):
            error = float((found.float() - expected.float()).norm() / expected.float().norm())
            if not error < TRIAL_TOLERANCE:  # nor is it a number
                raise RuntimeError(f"its result is {error:.2g} of the norm from that of per_sample")
        return min(_seconds(functools.partial(learnt, name), device) for _ in range(3))


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
