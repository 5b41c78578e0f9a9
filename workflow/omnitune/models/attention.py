"""Attention within the sequences of a packed batch: the kernels that there are, and which of them is fast where.

On Hopper (compute capability 9.0) cuDNN's kernel trains nearly twice as fast as flash attention 2, on other GPUs as fast or
slower. `fastest` finds out by a trial of both.

cuDNN makes a plan for each length that is new, three in a training step (a forward with and one without gradients, a backward),
each of some 60 ms: with texts of any length this took longer than it won. So sequences are padded to multiples of 128 tokens,
for which there is soon a plan each.
"""

import functools
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from .packing import MULTIPLE, Packing

logger = logging.getLogger("omnitune")

HALF = (torch.bfloat16, torch.float16)
FLASH3 = (9, 0)  # the compute capability that flash-attn 3 is for
TRIAL_LENGTHS = (4224, 4480)  # tokens of two sequences
MARKS = 8  # channels more that tell padding from tokens; cuDNN's heads are multiples of 8, up to 128
PADDING = -(2.0**15)  # of a key in these channels: the exponential of such a score is zero in any precision

Shape = tuple[int, int, int]  # heads of queries, heads of keys and values, channels of a head


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

    A mask would take cuDNN's fast kernel away. Instead heads are widened by channels in which queries are 1 and keys 0, or
    far below 0 where they are padding.
    """
    head_dim = query.shape[-1]
    wide = (
        _padded(query, packing, marks=1.0),
        _padded(key, packing, marks=0.0, padding=PADDING),
        _padded(value, packing, marks=0.0),
    )
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    outputs = []
    with sdpa_kernel(order, set_priority=True):
        for length, *parts in zip(packing.lengths, *(t.split(packing.padded) for t in wide), strict=True):
            q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in parts)
            grouped = k.shape[1] != q.shape[1]
            attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, scale=head_dim**-0.5)
            outputs.append(attended[0, :, :length, :head_dim].transpose(0, 1))
    return torch.cat(outputs)


def _padded(states: torch.Tensor, packing: Packing, *, marks: float, padding: float = 0.0) -> torch.Tensor:
    """Packed states [tokens, heads, head_dim] with padding between sequences: [padded tokens, heads, head_dim + MARKS]."""
    empty = states.new_zeros(sum(packing.padded), *states.shape[1:])
    wide = (F.pad(empty, (0, MARKS), value=padding), F.pad(states, (0, MARKS), value=marks))
    return wide[0].index_copy(0, packing.slots, wide[1])


def attend_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """All sequences in one call of flash attention; bfloat16 or float16 on CUDA."""
    starts, longest = packing.cu_seqlens, packing.longest
    return varlen_attn(query, key, value, starts, starts, longest, longest, **_grouped(query, key))  # type: ignore[return-value]


def _grouped(query: torch.Tensor, key: torch.Tensor) -> dict[str, Any]:
    """Says that heads are grouped, where varlen_attn wants to know: before torch 2.12 it takes them as they are."""
    return {"enable_gqa": query.shape[1] != key.shape[1]} if ASKS_FOR_GROUPS else {}


ASKS_FOR_GROUPS = "enable_gqa" in (varlen_attn.__kwdefaults__ or {})

KERNELS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing], torch.Tensor]] = {
    # torch.compile would compile these anew for each list of runs
    "per_sample": torch.compiler.disable(attend_per_sample),
    "cudnn": torch.compiler.disable(attend_cudnn),
    "varlen": attend_varlen,
}


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Attention of [tokens, heads, head_dim] within each sequence, by the kernel that the packing names."""
    return KERNELS[packing.kernel](query, key, value, packing)


@functools.cache
def fastest(device: torch.device, dtype: torch.dtype, shape: Shape) -> str:
    """The kernel of `auto`: found once per process for a device, a dtype and heads; the log says it.

    Args:
        device: of the states.
        dtype: of the products.
        shape: heads of queries, heads of keys and values, channels of a head.
    """
    if device.type != "cuda" or dtype not in HALF:
        return "per_sample"
    capability = torch.cuda.get_device_capability(device)
    names = candidates(capability, shape)
    if "varlen" in names and capability == FLASH3:
        _engage_flash3()
    if "cudnn" in names and not _cudnn_takes(device, dtype, shape):
        names.remove("cudnn")
    if len(names) == 1:
        logger.info("attention by %s, which alone takes %s on this GPU", names[0], shape)
        return names[0]
    seconds = {name: _trial(name, device, dtype, shape) for name in names}
    found = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
    name = min(seconds, key=seconds.__getitem__)
    logger.info("attention by %s, by a trial of a layer's forward and backward: %s", name, found)
    return name


def candidates(capability: tuple[int, int], shape: Shape) -> list[str]:
    """The kernels that a GPU has for such heads."""
    head_dim = shape[2]
    if capability < (8, 0) or head_dim % 8 or head_dim > 256:
        return ["per_sample"]
    return ["varlen", "cudnn"] if head_dim <= 128 - MARKS else ["varlen"]


def _engage_flash3() -> None:
    """Lets torch's calls of flash attention run flash-attn 3, where that is installed."""
    if importlib.util.find_spec("flash_attn_interface") is None:
        return
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        logger.warning("flash-attn 3 is installed, but does not load: %s", error)


def _cudnn_takes(device: torch.device, dtype: torch.dtype, shape: Shape) -> bool:
    """Whether cuDNN computes such heads at all, grouped as they are."""
    heads, kv_heads, head_dim = shape
    q, k, v = (
        torch.zeros(1, n, MULTIPLE, head_dim + MARKS, device=device, dtype=dtype) for n in (heads, kv_heads, kv_heads)
    )
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads)
    except RuntimeError as error:
        logger.info("cuDNN's attention does not take %s: %s", shape, str(error).splitlines()[0])
        return False
    return True


def _trial(name: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> float:
    """Seconds of a layer's attention, forward and backward, once it is warm."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        positions = [(number, torch.zeros(length, 3, dtype=torch.int64)) for number, length in enumerate(TRIAL_LENGTHS)]
        packing = Packing(positions, (2, 2, 2), device, name)
        query, key, value = (
            torch.randn(sum(TRIAL_LENGTHS), heads, shape[2], device=device, dtype=dtype, generator=generator)
            for heads in (shape[0], shape[1], shape[1])
        )
        for tensor in (query, key, value):
            tensor.requires_grad_()
        seconds = []
        for _ in range(4):
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            attend(query, key, value, packing).sum().backward()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
