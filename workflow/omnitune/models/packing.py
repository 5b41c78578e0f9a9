"""How the tokens of a packed batch fall into sequences."""

import itertools
from collections.abc import Sequence

import torch

from .rope import rotary_frequencies

MULTIPLE = 128  # of tokens, to which sequences are padded where a kernel wants few lengths


class Packing:
    """How the tokens of one stage fall into sequences.

    A plain class on purpose: FSDP2 casts every tensor that it finds in a block's arguments to the parameters' dtype,
    and the rotary angles must stay in float32.

    Attributes:
        lengths: tokens of each sequence.
        runs: (number of sequences, length) of neighbours of equal length; they may share one attention call.
        cu_seqlens: int32 [sequences + 1], where each sequence starts, and the number of tokens.
        padded: lengths, rounded up to multiples of 128.
        slots: int64 [tokens], where each token is among sequences of these lengths.
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
        self.lengths = [len(ids) for _, ids in sequences]
        self.runs = [(len(list(group)), length) for length, group in itertools.groupby(self.lengths)]
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32).to(device)
        self.padded = [length + -length % MULTIPLE for length in self.lengths]
        gaps = [0, *itertools.accumulate(more - length for more, length in zip(self.padded, self.lengths, strict=True))]
        sizes = torch.tensor(self.lengths)
        self.slots = (torch.arange(sum(self.lengths)) + torch.tensor(gaps[:-1]).repeat_interleave(sizes)).to(device)
        self.longest = max(self.lengths)
        owners = torch.tensor([sample for sample, _ in sequences])
        self.samples = owners.repeat_interleave(sizes).to(device)
        self.rotation = rotary_frequencies(torch.cat([ids for _, ids in sequences]), axes_dim_rope, device)
