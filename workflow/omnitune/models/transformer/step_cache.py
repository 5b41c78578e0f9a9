"""Caches over the steps of a sampling: layers that are left out where their output is foretold from earlier steps.

Each guidance branch of each image has a state of its own, so that neither another branch nor another image of the list
changes what is left out, or what stands in for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig

from omnitune.models.transformer.packing import Packing

Branch = tuple[int, str]  # number of the image, name of the branch
# Change of the first block's input to change of the last one's output, highest power first, as published for OmniGen2.
RESCALING = (-5.48259225, 11.48772289, -4.47407401, 2.47730926, -0.03316487)
TAYLORSEER = TaylorSeerCacheConfig(  # as published, but for the order: 4 there takes 2.5 times the memory for nothing
    cache_interval=3,
    disable_cache_before_step=5,
    max_order=1,
    cache_identifiers=[r"layers\.\d+\.(attn|feed_forward)"],
)


@dataclass
class _State:
    """Of one branch: the first block's input of the last step, what the layers last added, the change since then."""

    modulated: torch.Tensor
    residual: torch.Tensor
    change: float = 0.0


class TeaCache:
    """Leaves out the joint layers while their input has hardly changed (arXiv 2411.19108).

    Args:
        threshold: of the estimated relative change since the layers were last run, from which they are run again.

    Attributes:
        branches: of the sequences of the next call, in their order.
        exact: whether the layers are run in any case, as in the first and the last step.
    """

    def __init__(self, threshold: float) -> None:
        if not threshold >= 0:
            raise ValueError(f"rel_l1_thresh = {threshold} must not be below 0")
        self.threshold = threshold
        self.branches: Sequence[Branch] = ()
        self.exact = True
        self._states: dict[Branch, _State] = {}

    def forget(self) -> None:
        """Before a new sampling."""
        self._states = {}

    def run(
        self, x: torch.Tensor, modulated: torch.Tensor, packing: Packing, layers: Callable[[torch.Tensor, Packing], Any]
    ) -> torch.Tensor:
        """What the layers make of packed sequences [tokens, channels], or an estimate of it.

        Args:
            x: their input.
            modulated: the first one's input after its modulated norm.
            packing: of the sequences.
            layers: runs them.
        """
        sequences, inputs = x.split(packing.lengths), modulated.split(packing.lengths)
        due = self._due(inputs)
        if due:
            part = packing if len(due) == len(sequences) else packing.part(due)
            outputs = layers(torch.cat([sequences[k] for k in due]), part).split(part.lengths)
            for k, output in zip(due, outputs, strict=True):
                self._states[self.branches[k]] = _State(inputs[k], output - sequences[k])
        return torch.cat([x + self._states[key].residual for key, x in zip(self.branches, sequences, strict=True)])

    def _due(self, inputs: Sequence[torch.Tensor]) -> list[int]:
        """Numbers of the sequences whose layers are run; waits for the device once."""
        known = [k for k, key in enumerate(self.branches) if key in self._states and not self.exact]
        pairs = [(inputs[k], self._states[self.branches[k]].modulated) for k in known]
        ratios = [(new - old).abs().mean() / old.abs().mean() for new, old in pairs]
        changes = dict(zip(known, torch.stack(ratios).tolist() if ratios else [], strict=True))
        for k, ratio in changes.items():
            state = self._states[self.branches[k]]
            state.modulated = inputs[k]
            state.change += sum(factor * ratio**power for power, factor in enumerate(reversed(RESCALING)))
        skipped = {k for k in known if self._states[self.branches[k]].change < self.threshold}
        return [k for k in range(len(inputs)) if k not in skipped]


class OmniGen2StepCacheMixin:
    """enable_teacache and enable_taylorseer of the pipeline."""

    transformer: Any

    def enable_teacache(self, rel_l1_thresh: float = 0.05) -> None:
        """Sample with TeaCache; the higher the threshold the faster, and the further from the exact image."""
        self.disable_step_cache()
        self.transformer.teacache = TeaCache(rel_l1_thresh)

    def enable_taylorseer(self, config: TaylorSeerCacheConfig = TAYLORSEER) -> None:
        """Sample with TaylorSeer (arXiv 2503.06923): most steps foretell the layers' attention and feed-forward.

        It keeps max_order + 1 outputs of each of these modules, in the transformer's dtype: much for large images.
        """
        self.disable_step_cache()
        own: Any = copy(config)
        own.taylor_factors_dtype = self.transformer.dtype
        self.transformer.enable_cache(own)

    def disable_step_cache(self) -> None:
        """Sample exactly again."""
        self.transformer.teacache = None
        if self.transformer.is_cache_enabled:
            self.transformer.disable_cache()

    def _forget_steps(self) -> None:
        if self.transformer.teacache is not None:
            self.transformer.teacache.forget()
        if self.transformer.is_cache_enabled:
            self.transformer._reset_stateful_cache()

    @contextmanager
    def _step(self, branches: Sequence[Branch], exact: bool) -> Iterator[None]:
        """Around a transformer call whose samples are these branches."""
        if self.transformer.teacache is not None:
            self.transformer.teacache.branches, self.transformer.teacache.exact = branches, exact
        if not self.transformer.is_cache_enabled:
            yield
            return
        # Its states are of a whole call, whose rows are the branches: with other branches it begins anew.
        with self.transformer.cache_context(str(branches)):
            yield
