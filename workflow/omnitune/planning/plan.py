"""What a training takes, before it does: memory, epochs, disk, hours, and what to change where it does not fit."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from omnitune.config import ExperimentOptions, StartingWeights, starting_weights
from omnitune.config.mixtures.sources import sources_of
from omnitune.flops import ModelFlops
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.paths import INDEX, METRICS
from omnitune.planning.disk import DiskSpace, conversions_space, data_space, weights_space
from omnitune.planning.inputs import Machine, PlanInputs
from omnitune.planning.measured import GpuHours, measured_hours
from omnitune.planning.memory import (
    FITS,
    FLOAT,
    MemoryEstimate,
    cheapest_strategy,
    device_memory,
    encoder_bytes_of,
    optimizer_state,
    planned_model,
)
from omnitune.planning.published import encoder_bytes
from omnitune.planning.remedies import Remedy, find_remedies
from omnitune.planning.samples import AssumedSamples, planned_samples
from omnitune.planning.workload import Kinds, Workload, count_kinds
from omnitune.training.architecture import expected_architecture
from omnitune.training.progress import read_progress


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
        samples: it has; None where that is not known, as of what follows from it.
        share: of the draws.
        steps_per_epoch: steps in which each of its samples is drawn once.
        epochs: passes through it in the whole training.
    """

    name: str
    samples: int | None
    share: float
    steps_per_epoch: float | None
    epochs: float | None


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
        gpu_hours: where there is none, of GPUs that were measured.
        disk: bytes by purpose.
        assumed: why samples are assumed to be as large as they may be; empty where they are those of shards.
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
    gpu_hours: list[GpuHours]
    disk: list[DiskSpace]
    assumed: str
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


def plan_training(inputs: PlanInputs, rate: Rate | None) -> TrainingPlan:
    """Plans a training.

    Args:
        inputs: what it is to train, on what and where.
        rate: samples per second, if known.

    Raises:
        ConfigError: where mixture, index and options do not belong together.
    """
    options, machine = inputs.options, inputs.machine
    workload = inputs.workload(options, machine.processes)
    strategy, reason = _strategy(inputs, workload)
    memory = inputs.memory(options, strategy, workload.heaviest, machine.processes)
    fits = memory.total <= FITS * machine.device_bytes
    model = planned_model(inputs.config, options.train)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.parameters())
    step_flops = ModelFlops(model).training(workload.samples) / workload.steps
    checkpoint_bytes, checkpoints = _checkpoint_bytes(model, trained, options), _kept_checkpoints(options)
    return TrainingPlan(
        options=options,
        machine=machine,
        parameters=parameters,
        trained=trained,
        strategy=strategy,
        reason=reason,
        memory=memory,
        workload=workload,
        kinds=count_kinds(inputs.samples, inputs.sources),
        sources=_source_plans(inputs),
        step_flops=step_flops,
        checkpoint_bytes=checkpoint_bytes,
        checkpoints=checkpoints,
        rate=rate,
        gpu_hours=[] if rate else measured_hours(options, inputs.config, step_flops, machine.processes),
        disk=[
            *inputs.weights,
            *data_space(options, inputs.config, inputs.samples, inputs.sources),
            DiskSpace("checkpoints", checkpoints * checkpoint_bytes, f"{checkpoints} kept"),
            conversions_space(options, parameters, trained, inputs.weights, _linear_widths(model)),
        ],
        assumed=inputs.samples.reason if isinstance(inputs.samples, AssumedSamples) else "",
        remedies=[] if fits else find_remedies(inputs, strategy, workload, memory.total),
    )


def plan_experiment(
    config: Path, index: Path | None, *, nodes: int, gpu_memory_gb: float | None, rate: Rate | None
) -> TrainingPlan:
    """Plans an experiment on this machine, or on GPUs of so much memory.

    Args:
        config: options file.
        index: of the shards; None: the workflow's. Where they do not fit the options, or there are none, samples are
            assumed to be as large as the options allow.
        nodes: on which the processes run.
        gpu_memory_gb: of each GPU, in 10^9 bytes; None: this machine's, or a process's share of it without GPUs.
        rate: None: that of the experiment's steps so far.

    Raises:
        ValueError: where an index that is named is missing, the model's size is not known, or processes and nodes do
            not fit.
    """
    options = ExperimentOptions.load(config)
    start = starting_weights(options, {options.name: options})
    sources = sources_of(options.data)
    own = Path(INDEX.format(dataset=options.data.dataset))
    processes = options.train.num_processes
    if processes % nodes:
        raise ValueError(f"--nodes: {nodes} is not allowed, as the {processes} processes must be spread equally.")
    memory = int(gpu_memory_gb * 1e9) if gpu_memory_gb else device_memory(processes // nodes)
    device = "cuda" if gpu_memory_gb or torch.cuda.is_available() else "cpu"
    inputs = PlanInputs(
        options,
        expected_architecture(options, start.transformer),
        planned_samples(options.data, sources, index or own, asked=index is not None),
        sources,
        Machine(processes, nodes, device, memory),
        encoder_bytes_of(start.base, options) or _published_encoders(options, start),
        weights_space(start),
    )
    return plan_training(inputs, rate or measured_rate(options.name))


def _published_encoders(options: ExperimentOptions, start: StartingWeights) -> int:
    """Bytes of VAE and text encoder before they are there; 0 where they are not known."""
    if options.data.encode or start.base.is_dir():
        return 0
    return encoder_bytes(start.source, 2 if options.train.mixed_precision == "bf16" else FLOAT)


def _linear_widths(model: OmniGen2Transformer2DModel) -> int:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(layer.in_features + layer.out_features for layer in layers)


def _checkpoint_bytes(model: OmniGen2Transformer2DModel, trained: int, options: ExperimentOptions) -> int:
    averaged = 2 if options.train.ema_decay else 1
    return FLOAT * trained * averaged + optimizer_state(model, options.train)


def _strategy(inputs: PlanInputs, workload: Workload) -> tuple[str, str]:
    """The strategy, and why where it is not the one that the options name."""
    options, machine = inputs.options, inputs.machine
    if machine.processes > 1 and options.train.parallelism != "auto":
        return options.train.parallelism, ""
    return cheapest_strategy(
        lambda strategy, _: inputs.memory(options, strategy, workload.heaviest, machine.processes).total,
        options.train,
        processes=machine.processes,
        nodes=machine.nodes,
        device_bytes=machine.device_bytes,
    )


def _source_plans(inputs: PlanInputs) -> list[SourcePlan]:
    train = inputs.options.train
    samples, names = inputs.samples, [source.name for source in inputs.sources]
    sizes = (
        [samples.counts[name] for name in names] if isinstance(samples, AssumedSamples) else list(samples.sizes(names))
    )
    plans = []
    for source, size in zip(inputs.sources, sizes, strict=True):
        if size is None:
            plans.append(SourcePlan(source.name, None, source.ratio, None, None))
            continue
        steps = size / (source.ratio * train.global_batch_size)
        plans.append(SourcePlan(source.name, size, source.ratio, steps, train.max_train_steps / steps))
    return plans


def _kept_checkpoints(options: ExperimentOptions) -> int:
    limit = options.logger.checkpoints_total_limit
    steps = options.checkpoint_steps
    return len({*steps[-limit:], *options.evaluated_steps}) if limit else len(steps)


def measured_rate(experiment: str) -> Rate | None:
    """The median of what the last steps of an experiment took, from logs/metrics.jsonl; None where there are none."""
    path = Path(METRICS.format(experiment=experiment))
    progress = read_progress(path)
    if progress is None or progress.samples_per_second is None:
        return None
    return Rate(progress.samples_per_second, f"median of {progress.rows} steps in {path}")
