"""What a training will take, before it takes it: memory, epochs, disk and hours, and what to change where it does not fit."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from omnitune.config import ExperimentOptions, starting_weights
from omnitune.config.sources import Source, read_mixture
from omnitune.config.training import WHOLE_TENSORS
from omnitune.distributed.layout import SHARDED, shard_size_of, sharded_strategies
from omnitune.models.flops import ModelFlops, SampleTokens
from omnitune.planning.memory import (
    FITS,
    FLOAT,
    MemoryEstimate,
    cheapest_strategy,
    device_memory,
    encoder_bytes_of,
    estimate_memory,
    model_config,
    optimizer_state,
    planned_model,
)
from omnitune.planning.workload import PIXELS_PER_TOKEN, Kinds, Workload, count_kinds, read_workload
from omnitune.sharding.index import ShardIndex


@dataclass(frozen=True)
class Machine:
    """Where a training is to run.

    Attributes:
        processes: on all nodes.
        nodes: how many.
        device: "cuda" or "cpu".
        device_bytes: memory of one process's device.
    """

    processes: int
    nodes: int
    device: str
    device_bytes: int


@dataclass(frozen=True)
class Rate:
    """Samples per second over all processes, and where the figure comes from."""

    samples_per_second: float
    origin: str


@dataclass(frozen=True)
class SourcePlan:
    """How a source is gone through.

    Attributes:
        name: of the source.
        samples: it has.
        share: of the draws.
        steps_per_epoch: steps in which each of its samples is drawn once.
        epochs: passes through it in the whole training.
    """

    name: str
    samples: int
    share: float
    steps_per_epoch: float
    epochs: float


@dataclass(frozen=True)
class Remedy:
    """A change of the options, and the bytes that a process needs after it."""

    change: str
    total: int


@dataclass(frozen=True)
class TrainingPlan:
    """All that `omnitune plan` says.

    Attributes:
        options, machine: what was asked.
        parameters, trained: numbers of them.
        strategy, reason: how processes share the model, and why where `auto` decided it.
        memory: of one process at the largest microbatch.
        workload, kinds, sources: what the data is.
        step_flops: of an average step, forward and backward, over all processes.
        checkpoint_bytes, checkpoints: of one, and how many are kept.
        rate: measured or stated; None where there is none.
        remedies: where it does not fit.
    """

    options: ExperimentOptions
    machine: Machine
    parameters: int
    trained: int
    strategy: str
    reason: str
    memory: MemoryEstimate
    workload: Workload
    kinds: Kinds
    sources: list[SourcePlan]
    step_flops: float
    checkpoint_bytes: int
    checkpoints: int
    rate: Rate | None
    remedies: list[Remedy]

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.memory.total <= FITS * self.machine.device_bytes

    @property
    def hours(self) -> float | None:
        """Of the whole training at the rate."""
        if self.rate is None:
            return None
        draws = self.options.train.max_train_steps * self.options.train.global_batch_size
        return draws / self.rate.samples_per_second / 3600


class _Estimator:
    """Estimates for options that may differ from those of the experiment."""

    def __init__(self, config: dict[str, Any], machine: Machine, encoder_bytes: int) -> None:
        self.config, self.machine, self.encoder_bytes = config, machine, encoder_bytes

    def __call__(
        self, options: ExperimentOptions, strategy: str, batch: Sequence[SampleTokens], processes: int | None = None
    ) -> MemoryEstimate:
        processes = processes or self.machine.processes
        return estimate_memory(
            options,
            self.config,
            strategy=strategy,
            shard_size=shard_size_of(strategy, options.train, processes, self.machine.nodes),
            batch=batch,
            device=self.machine.device,
            encoder_bytes=0 if options.data.encode else self.encoder_bytes,
        )


def plan_training(
    options: ExperimentOptions,
    config: dict[str, Any],
    index: ShardIndex,
    sources: Sequence[Source],
    machine: Machine,
    *,
    rate: Rate | None,
    encoder_bytes: int,
) -> TrainingPlan:
    """Plans a training; reads the index, no images and no weights.

    Args:
        options: of the experiment.
        config: of the transformer.
        index: of the shards.
        sources: of the mixture.
        machine: where it is to run.
        rate: samples per second, if known.
        encoder_bytes: of VAE and text encoder, where training encodes.

    Raises:
        ConfigError: where mixture, index and options do not belong together.
    """
    workload = read_workload(options, index, sources, processes=machine.processes)
    estimate = _Estimator(config, machine, encoder_bytes)
    strategy, reason = _strategy(options, machine, estimate, workload.heaviest)
    memory = estimate(options, strategy, workload.heaviest)
    model = planned_model(config, options.train)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    averaged = 2 if options.train.ema_decay else 1
    return TrainingPlan(
        options=options,
        machine=machine,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=trained,
        strategy=strategy,
        reason=reason,
        memory=memory,
        workload=workload,
        kinds=count_kinds(index, sources),
        sources=_source_plans(options, index, sources),
        step_flops=ModelFlops(model).training(workload.samples) / workload.steps,
        checkpoint_bytes=FLOAT * trained * averaged + optimizer_state(model, options.train),
        checkpoints=_kept_checkpoints(options),
        rate=rate,
        remedies=_remedies(options, strategy, memory.total, machine, estimate, workload, index, sources),
    )


def plan_experiment(
    config: Path, index: Path | None, *, nodes: int, gpu_memory_gb: float | None, rate: Rate | None
) -> TrainingPlan:
    """Plans an experiment on this machine, or on GPUs of so much memory.

    Args:
        config: options file.
        index: of the shards; None: the workflow's.
        nodes: on which the processes run.
        gpu_memory_gb: of each GPU, in 10^9 bytes; None: this machine's, or a process's share of it without GPUs.
        rate: None: that of the experiment's steps so far.

    Raises:
        ValueError: where the index is missing, the model's size is not known, or processes and nodes do not fit.
    """
    options = ExperimentOptions.load(config)
    start = starting_weights(options, {options.name: options})
    index = index or Path("prepared") / options.data.dataset / "shards" / "index.parquet"
    if not index.is_file():
        raise ValueError(f"{index} is missing. Make it with `snakemake --cores 2 shard`, or name another with --index.")
    processes = options.train.num_processes
    if processes % nodes:
        raise ValueError(f"--nodes: {nodes} is not allowed, as the {processes} processes must be spread equally.")
    memory = int(gpu_memory_gb * 1e9) if gpu_memory_gb else device_memory(processes // nodes)
    device = "cuda" if gpu_memory_gb or torch.cuda.is_available() else "cpu"
    return plan_training(
        options,
        model_config(options, start.transformer),
        ShardIndex.load(index),
        read_mixture(options.data.data_path),
        Machine(processes, nodes, device, memory),
        rate=rate or measured_rate(Path("experiments") / options.name),
        encoder_bytes=encoder_bytes_of(start.base, options),
    )


def _strategy(
    options: ExperimentOptions, machine: Machine, estimate: _Estimator, batch: Sequence[SampleTokens]
) -> tuple[str, str]:
    """The strategy, and why where it is not the one that the options name."""
    train, processes = options.train, machine.processes
    if processes > 1 and train.parallelism != "auto":
        return train.parallelism, ""
    return cheapest_strategy(
        lambda strategy, _: estimate(options, strategy, batch).total,
        train,
        processes=processes,
        nodes=machine.nodes,
        device_bytes=machine.device_bytes,
    )


def _source_plans(options: ExperimentOptions, index: ShardIndex, sources: Sequence[Source]) -> list[SourcePlan]:
    train = options.train
    sizes = index.sizes([source.name for source in sources])
    plans = []
    for source, size in zip(sources, sizes, strict=True):
        steps = size / (source.ratio * train.global_batch_size)
        plans.append(SourcePlan(source.name, size, source.ratio, steps, train.max_train_steps / steps))
    return plans


def _kept_checkpoints(options: ExperimentOptions) -> int:
    limit = options.logger.checkpoints_total_limit
    steps = options.checkpoint_steps
    return len({*steps[-limit:], *options.evaluated_steps}) if limit else len(steps)


@dataclass(frozen=True)
class _Variant:
    """A training that differs in one thing, which `change` names."""

    change: str
    options: ExperimentOptions
    strategy: str
    processes: int


def _variants(options: ExperimentOptions, strategy: str, machine: Machine, pixels: int) -> Iterator[_Variant]:
    """What may be changed, by what it costs, the least first; `pixels` is a lower limit of output images."""
    train, sharded, processes = options.train, strategy in SHARDED, machine.processes

    def changed(change: str, number: int = processes, **keys: Any) -> _Variant:
        spread = strategy if number == processes or strategy != "single" else "fsdp"
        return _Variant(change, options.model_copy(update={"train": train.model_copy(update=keys)}), spread, number)

    if not train.gradient_checkpointing:
        yield changed("train.gradient_checkpointing: true", gradient_checkpointing=True)
    elif train.gradient_checkpointing_every > 1:
        yield changed("train.gradient_checkpointing_every: 1", gradient_checkpointing_every=1)
    if sharded and not train.reshard_after_forward:
        yield changed("train.reshard_after_forward: true", reshard_after_forward=True)
    if not options.data.encode:
        data = options.data.model_copy(update={"encode": True})
        yield _Variant("data.encode: true", options.model_copy(update={"data": data}), strategy, processes)
    if train.batch_size % 2 == 0:
        half, steps = train.batch_size // 2, 2 * train.gradient_accumulation_steps
        smaller = f"train.batch_size: {half}"
        accumulated = f"{smaller} with train.gradient_accumulation_steps: {steps}"
        yield changed(accumulated, batch_size=half, gradient_accumulation_steps=steps)
        yield changed(f"{smaller} with {2 * processes} processes", 2 * processes, batch_size=half)
    if strategy == "ddp" and train.optimizer_name not in WHOLE_TENSORS:
        for other in sharded_strategies(train, processes, machine.nodes):
            yield _Variant(f"train.parallelism: {other}", options, other, processes)
    yield from _dearer_variants(options, strategy, machine, pixels, changed)


def _dearer_variants(
    options: ExperimentOptions, strategy: str, machine: Machine, pixels: int, changed: Callable[..., _Variant]
) -> Iterator[_Variant]:
    """Changes that train something else, or much slower."""
    train, sharded, cuda = options.train, strategy in SHARDED, machine.device == "cuda"
    if train.optimizer_name == "adamw" and not train.lora_ft:
        for name in ("muon",) if sharded else ("adamw_8bit", "adafactor") if cuda else ("adafactor",):
            yield changed(f"train.optimizer: {name}", optimizer=name)
    if not train.lora_ft:
        yield changed("train.lora_ft: true", lora_ft=True, parameter_groups=None)
    data = options.data.model_copy(update={"max_output_pixels": pixels})
    smaller = options.model_copy(update={"data": data})
    yield _Variant(f"data.max_output_pixels: {pixels}", smaller, strategy, machine.processes)
    if sharded and cuda and not train.cpu_offload:
        yield changed("train.cpu_offload: true", cpu_offload=True)


def _remedies(
    options: ExperimentOptions,
    strategy: str,
    needed: int,
    machine: Machine,
    estimate: _Estimator,
    workload: Workload,
    index: ShardIndex,
    sources: Sequence[Source],
) -> list[Remedy]:
    """The changes that help, where the `needed` bytes do not fit."""
    if needed <= FITS * machine.device_bytes:
        return []
    largest = PIXELS_PER_TOKEN * max(sample.image for sample in workload.heaviest)
    remedies = []
    for variant in _variants(options, strategy, machine, largest // 2):
        batch = _largest_batch(variant, options, workload, index, sources)
        after = estimate(variant.options, variant.strategy, batch, variant.processes).total
        if after < needed:
            remedies.append(Remedy(variant.change, after))
    return remedies


def _largest_batch(
    variant: _Variant, options: ExperimentOptions, workload: Workload, index: ShardIndex, sources: Sequence[Source]
) -> list[SampleTokens]:
    """The largest microbatch after a change; dealt again where that depends on it."""
    batch = workload.heaviest
    if variant.options.train.batch_size != options.train.batch_size:
        batch = read_workload(variant.options, index, sources, processes=variant.processes).heaviest
    limit = variant.options.data.max_output_pixels // PIXELS_PER_TOKEN
    return [replace(sample, image=min(sample.image, limit)) for sample in batch]


def measured_rate(experiment: Path) -> Rate | None:
    """The median of what the steps of an experiment took, from logs/metrics.jsonl; None where there are none."""
    path = experiment / "logs" / "metrics.jsonl"
    if not path.is_file():
        return None
    rates = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rates.append(float(json.loads(line)["samples_per_second"]))
        except (json.JSONDecodeError, KeyError):  # the last line of a killed run, or a row of something else
            continue
    return Rate(median(rates), f"median of {len(rates)} steps in {path}") if rates else None
