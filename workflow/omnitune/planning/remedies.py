"""What may be changed of a training that does not fit into memory, and what it needs then."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import WHOLE_TENSORS
from omnitune.distributed.layout import SHARDED, sharded_strategies
from omnitune.flops import PIXELS_PER_TOKEN, SampleTokens
from omnitune.planning.inputs import PlanInputs
from omnitune.planning.workload import Workload


@dataclass(frozen=True)
class Remedy:
    """A change of the options, and the bytes that a process needs after it."""

    change: str
    total: int


def find_remedies(inputs: PlanInputs, strategy: str, workload: Workload, needed: int) -> list[Remedy]:
    """The changes after which a process needs less than the `needed` bytes; each alone, the least costly first.

    Args:
        inputs: of the plan.
        strategy: how processes share the model now.
        workload: of the experiment's options.
        needed: bytes of a process now.
    """
    remedies = []
    for variant in _Variants(inputs, strategy, workload).all():
        batch = _largest_batch(variant, inputs, workload)
        after = inputs.memory(variant.options, variant.strategy, batch, variant.processes).total
        if after < needed:
            remedies.append(Remedy(variant.change, after))
    return remedies


@dataclass(frozen=True)
class _Variant:
    """A training that differs in one thing, which `change` names."""

    change: str
    options: ExperimentOptions
    strategy: str
    processes: int


def _largest_batch(variant: _Variant, inputs: PlanInputs, workload: Workload) -> list[SampleTokens]:
    """The largest microbatch after a change; dealt again where that depends on it."""
    batch = workload.heaviest
    if variant.options.train.batch_size != inputs.options.train.batch_size:
        batch = inputs.workload(variant.options, variant.processes).heaviest
    limit = variant.options.data.max_output_pixels // PIXELS_PER_TOKEN
    return [replace(sample, image=min(sample.image, limit)) for sample in batch]


class _Variants:
    """What may be changed.

    Args: as of `find_remedies`.
    """

    def __init__(self, inputs: PlanInputs, strategy: str, workload: Workload) -> None:
        self.options, self.train, self.machine = inputs.options, inputs.options.train, inputs.machine
        self.strategy, self.sharded = strategy, strategy in SHARDED
        self.largest = max(sample.image for sample in workload.heaviest)

    def all(self) -> Iterator[_Variant]:
        """By what they cost, the least first."""
        yield from self._recomputed()
        yield from self._encoded()
        yield from self._halved()
        yield from self._sharded()
        yield from self._trained_otherwise()
        yield from self._offloaded()

    def _changed(self, change: str, processes: int | None = None, **keys: Any) -> _Variant:
        """With other keys of `train`, on as many processes or more."""
        number = processes or self.machine.processes
        strategy = self.strategy if processes is None or self.strategy != "single" else "fsdp"
        return _Variant(change, _with(self.options, "train", **keys), strategy, number)

    def _changed_data(self, change: str, **keys: Any) -> _Variant:
        """With other keys of `data`."""
        return _Variant(change, _with(self.options, "data", **keys), self.strategy, self.machine.processes)

    def _recomputed(self) -> Iterator[_Variant]:
        if not self.train.gradient_checkpointing:
            yield self._changed("train.gradient_checkpointing: true", gradient_checkpointing=True)
        elif self.train.gradient_checkpointing_every > 1:
            yield self._changed("train.gradient_checkpointing_every: 1", gradient_checkpointing_every=1)
        if self.sharded and not self.train.reshard_after_forward:
            yield self._changed("train.reshard_after_forward: true", reshard_after_forward=True)

    def _encoded(self) -> Iterator[_Variant]:
        if not self.options.data.encode:
            yield self._changed_data("data.encode: true", encode=True)

    def _halved(self) -> Iterator[_Variant]:
        if self.train.batch_size % 2 == 0:
            half, steps = self.train.batch_size // 2, 2 * self.train.gradient_accumulation_steps
            smaller, more = f"train.batch_size: {half}", 2 * self.machine.processes
            accumulated = f"{smaller} with train.gradient_accumulation_steps: {steps}"
            yield self._changed(accumulated, batch_size=half, gradient_accumulation_steps=steps)
            yield self._changed(f"{smaller} with {more} processes", more, batch_size=half)

    def _sharded(self) -> Iterator[_Variant]:
        if self.strategy == "ddp" and self.train.optimizer_name not in WHOLE_TENSORS:
            processes = self.machine.processes
            for other in sharded_strategies(self.train, processes, self.machine.nodes):
                yield _Variant(f"train.parallelism: {other}", self.options, other, processes)

    def _trained_otherwise(self) -> Iterator[_Variant]:
        """Which gives other weights."""
        cuda = self.machine.device == "cuda"
        if self.train.optimizer_name == "adamw" and not self.train.lora_ft:
            for name in ("muon",) if self.sharded else ("adamw_8bit", "adafactor") if cuda else ("adafactor",):
                yield self._changed(f"train.optimizer: {name}", optimizer=name)
        if not self.train.lora_ft:
            yield self._changed("train.lora_ft: true", lora_ft=True, parameter_groups=None)
        pixels = PIXELS_PER_TOKEN * self.largest // 2
        yield self._changed_data(f"data.max_output_pixels: {pixels}", max_output_pixels=pixels)

    def _offloaded(self) -> Iterator[_Variant]:
        """Which is much slower."""
        if self.sharded and self.machine.device == "cuda" and not self.train.cpu_offload:
            yield self._changed("train.cpu_offload: true", cpu_offload=True)


def _with(options: ExperimentOptions, section: str, **keys: Any) -> ExperimentOptions:
    """The same with other keys in a section."""
    return options.model_copy(update={section: getattr(options, section).model_copy(update=keys)})
