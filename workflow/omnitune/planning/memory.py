"""How much memory a training process needs, before any GPU is used, and which parallelism follows from it."""

import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import WHOLE_TENSORS, TrainOptions
from omnitune.distributed.layout import SHARDED, shard_size_of, sharded_strategies
from omnitune.distributed.parallel import COMPUTE_DTYPES
from omnitune.flops import SampleTokens, Unit, gradient_reaches, is_trained
from omnitune.io.model_files.weights import read_header
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.planning.blocks import Compute, Footprint, block_footprint, ends_footprint
from omnitune.training.model import select_trained

FITS = 0.85  # of a device's memory; the rest is for CUDA, NCCL and what the allocator cannot use
SMALL_8BIT = 4096  # elements below which bitsandbytes keeps 32-bit moments
FLOAT = 4  # bytes of the float32 in which trained weights, gradients and averages are kept


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process at the moment when it needs most.

    Attributes:
        weights: those of this process, frozen matrices in the dtype of products, all else in float32.
        optimizer: its state.
        average: of the weights (train.ema_decay).
        encoders: VAE and text encoder, where training encodes.
        gradients: those that are there at that moment.
        gathered: weights of blocks that FSDP has gathered.
        activations: kept for the backward pass.
        temporary: of the block, or the update, that is being computed.
        moment: "forward", "backward" or "update".
    """

    weights: int
    optimizer: int
    average: int
    encoders: int
    gradients: int = 0
    gathered: int = 0
    activations: int = 0
    temporary: int = 0
    moment: str = ""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def planned_model(config: Mapping[str, Any], train: TrainOptions) -> OmniGen2Transformer2DModel:
    """The transformer on the meta device, with adapters and `requires_grad` as the options say.

    Args:
        config: as in the transformer's config.json, or model.arch_opt.
        train: decides what is trained.

    Raises:
        ValueError: for parameters or layers that it does not have.
    """
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel.from_config(dict(config))
        select_trained(model, train)
    return model.train()


@dataclass(frozen=True)
class _Block:
    """A block in the order of the forward pass: its parameters and trained parameters (numbers), and its bytes."""

    parameters: int
    trained: int
    footprint: Footprint


class _Process:
    """One process of a training: what it holds all the time, and the moments of a step.

    Args: as of `estimate_memory`.
    """

    def __init__(
        self,
        options: ExperimentOptions,
        config: Mapping[str, Any],
        strategy: str,
        shard_size: int,
        batch: Sequence[SampleTokens],
        device: str,
        encoder_bytes: int,
    ) -> None:
        self.train = options.train
        self.strategy = strategy
        self.sharded = strategy in SHARDED
        self.offloaded = self.sharded and self.train.cpu_offload
        self.shards = shard_size if self.sharded else 1
        self.model = planned_model(config, self.train)
        dtype = COMPUTE_DTYPES[self.train.mixed_precision]
        self.compute = Compute(dtype, dtype if self.sharded else None, device)
        self.blocks = _blocks(self.model, batch, self.compute, self.train)
        self.ends = ends_footprint(self.model, batch, self.compute)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.held = self._held(encoder_bytes)

    def _held(self, encoder_bytes: int) -> MemoryEstimate:
        """What is there at every moment; of what cpu_offload keeps off the device, nothing."""
        if self.offloaded:
            return MemoryEstimate(weights=0, optimizer=0, average=0, encoders=encoder_bytes)
        return MemoryEstimate(
            weights=sum(self._local([p]) * p.itemsize for p in self.model.parameters()),
            optimizer=optimizer_state(self.model, self.train, self.shards),
            average=FLOAT * self._local(self.trained) if self.train.ema_decay else 0,
            encoders=encoder_bytes,
        )

    def _local(self, parameters: Iterable[torch.Tensor]) -> int:
        """Numbers of these parameters that lie in one process."""
        return sum(math.prod(_local_shape(parameter, self.shards)) for parameter in parameters)

    def moments(self) -> list[MemoryEstimate]:
        """The moments that may need most: the end of the forward pass, the backward pass of each block, the update."""
        kept = [block.footprint.kept for block in self.blocks]
        copies = sum(block.footprint.forward_only for block in self.blocks)
        moments = [self._moment("forward", len(kept), sum(kept), copies)]
        for number, block in enumerate(self.blocks):
            exchanged = FLOAT * block.trained if self.sharded else 0
            temporary = block.footprint.backward + exchanged
            moments.append(self._moment("backward", number + 1, sum(kept[:number]), temporary))
        return [*moments, self._update()]

    def _moment(self, moment: str, number: int, kept: int, temporary: int) -> MemoryEstimate:
        """A moment at which the first `number` blocks have no gradients yet."""
        return replace(
            self.held,
            moment=moment,
            gradients=self._gradients(self.blocks[number:]),
            gathered=self._gathered(number),
            activations=self.ends.kept + kept,
            temporary=temporary,
        )

    def _gradients(self, done: Sequence[_Block]) -> int:
        """Bytes of gradients once those of some blocks are there."""
        if self.offloaded:
            return 0
        if self.train.gradient_accumulation_steps > 1 or self.strategy == "ddp":
            # DDP keeps its buckets. FSDP adds up whole gradients until it exchanges them after the last microbatch.
            return FLOAT * sum(parameter.numel() for parameter in self.trained)
        return FLOAT * sum(block.trained for block in done) // self.shards

    def _gathered(self, number: int) -> int:
        """Bytes that FSDP has gathered: what is no block, and blocks, the one that is being gathered twice."""
        if not self.sharded:
            return 0
        sizes = [block.parameters for block in self.blocks]
        root = sum(p.numel() for p in self.model.parameters()) - sum(sizes)
        largest = max(sizes, default=0)
        held = 2 * largest if self.train.reshard_after_forward else sum(sizes[:number])
        return self.compute.dtype.itemsize * (root + held + largest)

    def _update(self) -> MemoryEstimate:
        """The update; optimizers that are not fused compute on one parameter at a time."""
        fused = self.train.optimizer_name in {"adamw", "adamw_8bit"}
        largest = max((self._local([parameter]) for parameter in self.trained), default=0)
        gradients = 0 if self.offloaded else FLOAT * self._local(self.trained)
        return replace(self.held, moment="update", gradients=gradients, temporary=0 if fused else 2 * FLOAT * largest)


def _local_shape(parameter: torch.Tensor, shards: int) -> tuple[int, ...]:
    """FSDP cuts a parameter along its first axis and pads the last part."""
    first, *rest = parameter.shape or (1,)
    return (-(-first // shards), *rest)


def optimizer_bytes(name: str, shape: tuple[int, ...], block_matrix: bool) -> int:
    """Bytes of an optimizer's state for a parameter; `block_matrix`: it is a matrix of a block, which Muon takes."""
    numel = math.prod(shape)
    if name == "adamw_8bit":
        return 2 * numel if numel >= SMALL_8BIT else 8 * numel
    if name == "adafactor":
        rows_and_columns = numel // shape[-1] + numel // shape[-2] if len(shape) > 1 else numel
        return FLOAT * rows_and_columns
    if name == "prodigy":
        return 16 * numel
    return 4 * numel if name == "muon" and block_matrix else 8 * numel


def optimizer_state(model: OmniGen2Transformer2DModel, train: TrainOptions, shards: int = 1) -> int:
    """Bytes of the optimizer's state in each of so many processes that share it."""
    blocks = [unit.module for unit, _ in gradient_reaches(model) if unit.block]
    matrices = {id(p) for block in blocks for p in block.parameters() if p.ndim == 2}
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(optimizer_bytes(train.optimizer_name, _local_shape(p, shards), id(p) in matrices) for p in trained)


_MEASURED: dict[Hashable, Footprint] = {}


def _blocks(
    model: OmniGen2Transformer2DModel,
    batch: Sequence[SampleTokens],
    compute: Compute,
    train: TrainOptions,
) -> list[_Block]:
    """The blocks in order; like ones are measured once, in all variants of a plan."""
    axes = tuple(model.config.axes_dim_rope)
    temb = is_trained(model.time_caption_embed.timestep_embedder)
    places: dict[str, int] = {}
    blocks = []
    for unit, into in gradient_reaches(model):
        if not unit.block:
            continue
        place = places[unit.stage] = places.get(unit.stage, -1) + 1
        recompute = train.gradient_checkpointing and place % train.gradient_checkpointing_every == 0
        parameters = list(unit.module.parameters())
        pattern = tuple((tuple(p.shape), p.requires_grad) for p in parameters)
        key = (repr(unit.module), pattern, unit.stage, tuple(batch), compute, axes, into, temb, recompute)
        if key not in _MEASURED:
            _MEASURED[key] = _footprint(unit, batch, compute, axes, into, temb, recompute)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        blocks.append(_Block(sum(p.numel() for p in parameters), trained, _MEASURED[key]))
    return blocks


def _footprint(
    unit: Unit,
    batch: Sequence[SampleTokens],
    compute: Compute,
    axes: Sequence[int],
    into: bool,
    temb: bool,
    recompute: bool,
) -> Footprint:
    """Of one block; see `block_footprint`."""
    if not any(sum(sample.sequences(unit.stage)) for sample in batch):  # no references: gradients of zero
        trained = sum(p.numel() for p in unit.module.parameters() if p.requires_grad)
        return Footprint(0, 0, (compute.weights or torch.float32).itemsize * trained)
    return block_footprint(
        unit.module, batch, unit.stage, compute, axes_dim_rope=axes, into=into, temb=temb, recompute=recompute
    )


def estimate_memory(
    options: ExperimentOptions,
    config: Mapping[str, Any],
    *,
    strategy: str,
    shard_size: int,
    batch: Sequence[SampleTokens],
    device: str,
    encoder_bytes: int = 0,
) -> MemoryEstimate:
    """Memory of one process where it needs most. Images that are drawn while training are not in it.

    Args:
        options: of the experiment.
        config: of the transformer.
        strategy: single, ddp, fsdp or hsdp.
        shard_size: processes that hold one copy of the parameters between them; ddp and single hold it each.
        batch: the samples of the largest microbatch.
        device: "cuda" or "cpu".
        encoder_bytes: of VAE and text encoder, where training encodes; see `encoder_bytes_of`.
    """
    process = _Process(options, config, strategy, shard_size, batch, device, encoder_bytes)
    return max(process.moments(), key=lambda moment: moment.total)


def encoder_bytes_of(base: Path, options: ExperimentOptions) -> int:
    """Bytes of VAE and text encoder in training, from the headers of their files; 0 with data.encode or no files."""
    if options.data.encode:
        return 0
    text = 2 if options.train.mixed_precision == "bf16" else FLOAT
    total = 0
    for folder, size in ((base / "vae", FLOAT), (base / "mllm", text)):
        for path in folder.glob("*.safetensors"):
            shapes = read_header(path).shapes
            # instructions pass neither through the vision tower nor through the output head
            names = [name for name in shapes if "visual." not in name and not name.startswith("lm_head.")]
            total += size * sum(math.prod(shapes[name]) for name in names)
    return total


def device_memory(processes: int = 1) -> int:
    """Bytes of the first GPU; without any, of the machine, shared by so many processes."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(0)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def gigabytes(size: float) -> str:
    """For a person: 10^9 bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def choose_parallelism(
    options: ExperimentOptions,
    model_config: Mapping[str, Any],
    *,
    processes: int,
    nodes: int,
    device_bytes: int,
    batch: Sequence[SampleTokens],
    encoder_bytes: int = 0,
) -> tuple[str, str]:
    """What `train.parallelism: auto` stands for, and one sentence why.

    `ddp` where it fits into 85 % of a device; else, on several nodes, `hsdp` where a replica shared within a node fits;
    else `fsdp`, whether it fits or not.

    Args:
        options, model_config, batch, encoder_bytes: as of `estimate_memory`.
        processes, nodes: on all nodes, and the nodes.
        device_bytes: memory of a process's device.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def total(strategy: str, shard_size: int) -> int:
        estimate = estimate_memory(
            options,
            model_config,
            strategy=strategy,
            shard_size=shard_size,
            batch=batch,
            device=device,
            encoder_bytes=encoder_bytes,
        )
        return estimate.total

    return cheapest_strategy(total, options.train, processes=processes, nodes=nodes, device_bytes=device_bytes)


def cheapest_strategy(
    total: Callable[[str, int], int], train: TrainOptions, *, processes: int, nodes: int, device_bytes: int
) -> tuple[str, str]:
    """The first strategy that fits, of those that exchange more and more; `total` gives the bytes of one. And why."""
    if processes == 1:
        return "single", "there is one process"
    if train.optimizer_name in WHOLE_TENSORS:
        return "ddp", f"the optimizer {train.optimizer_name!r} computes over whole parameters"
    reasons = []
    for strategy in ("ddp", *sharded_strategies(train, processes, nodes)):
        needed = total(strategy, shard_size_of(strategy, train, processes, nodes))
        reasons.append(f"{strategy} needs {gigabytes(needed)} of {gigabytes(device_bytes)} per process")
        if needed <= FITS * device_bytes:
            break
    return strategy, "; ".join(reasons)
