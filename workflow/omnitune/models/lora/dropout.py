"""Dropout of LoRA adapters that belongs to samples: it depends neither on the process nor on what else is in a batch.

Each element's fate is a hash of the sample's seed, the token's place in the sample, the adapted module's name and the
feature, so that nothing is drawn in an order. The hash is splitmix64 (Steele, Lea and Flood 2014), in int64 that wraps
around.
"""

import hashlib
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from omnitune.models.transformer.packing import Packing
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2TransformerBlock

GOLDEN = -0x61C8864680B583EB  # 2**64 divided by the golden ratio, as a signed number
MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # splitmix64's two
INSIDE = ("attn.", "feed_forward.")  # parts of a block whose rows are tokens


def scrambled(values: Tensor) -> Tensor:
    """splitmix64's finaliser of int64 values: each bit of a result depends on all bits of its value."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        values = (values ^ _shifted(values, shift)) * multiplier
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros; torch's own keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class DropoutSeeds:
    """The seeds that the dropouts of one model share.

    `set` is called before each forward in training; seeds hold until the next call, so that recomputed blocks drop the
    same.
    """

    def __init__(self) -> None:
        self._seeds: Tensor | None = None
        self.rows: Tensor | None = None

    def set(self, seeds: Tensor) -> None:
        """Sets the seed of each sample of the next forward: int64 [samples]."""
        if seeds.dtype != torch.int64 or seeds.ndim != 1:
            raise ValueError(f"seeds are {seeds.dtype} {list(seeds.shape)}: they must be int64 [samples]")
        self._seeds = seeds

    @torch.no_grad()
    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of a block: hashes seed and place of each token, int64 [tokens], for the dropouts inside."""
        if not block.training:
            return
        assert self._seeds is not None, "seeds are set before each forward in training"
        packing: Packing = args[1]
        samples = packing.samples
        # a sample's tokens are neighbours, so that the first of them is found by bisection
        places = torch.arange(len(samples), device=samples.device) - torch.searchsorted(samples, samples)
        self.rows = scrambled(scrambled(self._seeds.to(samples.device))[samples] + places * GOLDEN)


class SampleDropout(nn.Module):
    """Zeroes elements of [tokens, features] with probability p in training and scales the others by 1 / (1 - p).

    Args:
        p: probability.
        name: of the module whose input it is; different names drop differently.
        seeds: of the model.
    """

    def __init__(self, p: float, name: str, seeds: DropoutSeeds) -> None:
        super().__init__()
        self.p, self.seeds = p, seeds
        self.key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        self.limit = round(p * 2**64) - 2**63  # hashes are spread evenly over all of int64

    def forward(self, x: Tensor) -> Tensor:
        """The input itself outside of training."""
        if not self.training:
            return x
        return x.masked_fill(self.dropped(x.shape[-1]), 0.0) / (1 - self.p)

    @torch.no_grad()
    def dropped(self, features: int) -> Tensor:
        """Which elements are zeroed: bool [tokens, features] of the block that is running."""
        rows = self.seeds.rows
        assert rows is not None
        columns = torch.arange(features, device=rows.device) * GOLDEN
        return scrambled(scrambled(rows ^ self.key)[:, None] + columns) < self.limit


def use_sample_dropout(model: Any, p: float) -> DropoutSeeds:
    """Replaces the dropout of a model's adapters by one that belongs to samples.

    Args:
        model: with its adapters, not wrapped or sharded yet.
        p: train.lora_dropout, above 0.

    Returns:
        where the seeds are set before each forward.

    Raises:
        ValueError: for adapters outside of attention and feed-forward, whose rows are no tokens.
    """
    seeds = DropoutSeeds()
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, OmniGen2TransformerBlock)}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    starts = tuple(f"{block}.{part}" for block in blocks for part in INSIDE)
    outside = [name for name in layers if not name.startswith(starts)]
    if outside:
        raise ValueError(
            f"train.lora_dropout: {p} cannot be applied to {', '.join(outside[:3])} (train.lora_target_modules), whose "
            "inputs are no tokens. Set lora_dropout: 0 or choose layers of attn and feed_forward only."
        )
    for name, layer in layers.items():
        for adapter in layer.lora_dropout:
            layer.lora_dropout[adapter] = SampleDropout(p, name, seeds)
    for block in blocks.values():
        block.register_forward_pre_hook(seeds.enter)
    return seeds
