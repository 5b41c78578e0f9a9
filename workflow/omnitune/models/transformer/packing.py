"""How the tokens of a packed batch fall into sequences, and how each is scaled by what its sample has."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from omnitune.models.transformer.rope import rotary_frequencies

MULTIPLE = 128  # of tokens, to which sequences are padded where a kernel wants few lengths


class Packing:
    """How the tokens of one stage fall into sequences.

    A plain class on purpose: FSDP2 casts every tensor that it finds in a block's arguments to the parameters' dtype,
    and the rotary angles must stay in float32.

    Attributes:
        lengths: tokens of each sequence.
        runs: (number of sequences, length) of neighbours of equal length; they may share one attention call.
        cu_seqlens: int32 [sequences + 1], where each sequence starts, and the number of tokens.
        longest: tokens of the longest sequence.
        samples: int64 [tokens], the sample each token belongs to.
        rotation: float32 [tokens, 1, head_dim / 2, 2], cosine and sine of the rotary angles.
        kernel: name of the attention kernel, see attention.py.
    """

    def __init__(
        self,
        sequences: Sequence[tuple[int, torch.Tensor]],
        axes_dim_rope: Sequence[int],
        device: torch.device,
        kernel: str = "per_sample",
    ) -> None:
        """Lay out `sequences`, pairs of (sample, position ids [length, 3])."""
        self.kernel = kernel
        self._lay_out([len(ids) for _, ids in sequences], device)
        owners = torch.tensor([sample for sample, _ in sequences])
        self.samples = owners.repeat_interleave(torch.tensor(self.lengths)).to(device)
        self.rotation = rotary_frequencies(torch.cat([ids for _, ids in sequences]), axes_dim_rope, device)

    def _lay_out(self, lengths: list[int], device: torch.device) -> None:
        self.lengths = lengths
        self.runs = [(len(list(group)), length) for length, group in itertools.groupby(lengths)]
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
        self.longest = max(lengths)

    def part(self, chosen: Sequence[int]) -> "Packing":
        """The same of some of the sequences, by their numbers."""
        part = object.__new__(Packing)
        part.kernel = self.kernel
        part._lay_out([self.lengths[k] for k in chosen], self.samples.device)
        samples, rotations = self.samples.split(self.lengths), self.rotation.split(self.lengths)
        part.samples = torch.cat([samples[k] for k in chosen])
        part.rotation = torch.cat([rotations[k] for k in chosen])
        return part

    @functools.cached_property
    def padded(self) -> list[int]:
        """Lengths, rounded up to multiples of 128."""
        return [length + -length % MULTIPLE for length in self.lengths]

    @functools.cached_property
    def slots(self) -> torch.Tensor:
        """int64 [tokens], where each token is among sequences of the lengths `padded`."""
        starts = torch.tensor([0, *itertools.accumulate(self.padded)][:-1])
        within = torch.cat([torch.arange(length) for length in self.lengths])
        return (starts.repeat_interleave(torch.tensor(self.lengths)) + within).to(self.samples.device)


class _ScaledByRows(torch.autograd.Function):
    """x * table[ids]: the gathered rows are not kept, and the table's gradient is a one-hot matrix product.

    The stock backward of indexing adds thousands of bfloat16 gradients to a handful of rows atomically: slow, inexact,
    and different in each run. A matrix product accumulates in float32 in a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, table, ids)
        return x * table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, table, ids = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad * table.index_select(0, ids)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            one_hot = (ids[:, None] == torch.arange(table.shape[0], device=ids.device)).to(grad.dtype)
            grad_table = (one_hot.T @ (grad * x).to(grad.dtype)).to(table.dtype)
        return grad_x, grad_table, None


def scaled_by_rows(x: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """x [tokens, channels] times the rows `ids` [tokens] of `table` [rows, channels]; a single row broadcasts."""
    return x * table if table.shape[0] == 1 else _ScaledByRows.apply(x, table, ids)
