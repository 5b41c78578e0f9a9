"""What the data asks of a training, by the shards' index alone: samples, microbatches and the largest of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from omnitune.config import ExperimentOptions
from omnitune.config.mixtures.sources import Source, sources_of
from omnitune.flops import PIXELS_PER_TOKEN, SampleTokens
from omnitune.loading.balance import deal, waste
from omnitune.loading.order import MixtureOrder
from omnitune.planning.samples import AssumedRow, AssumedSamples
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import IndexRow
from omnitune.validation.summary import size_class

IntArray = npt.NDArray[np.int64]

MAX_STEPS = 200  # that are dealt as training deals them
MAX_SAMPLES = 5000  # in these steps


@dataclass(frozen=True)
class Workload:
    """The first steps of a training, exactly as they will be.

    Attributes:
        steps: how many were looked at.
        samples: of these steps.
        tokens: int64 [steps, microbatches, processes], of each microbatch.
        heaviest: the samples of the microbatch with most tokens.
        waste: share of the tokens that could have been computed while processes wait for each other.
        text_counted: whether the index knows the tokens of all instructions; otherwise the longest allowed ones are
            assumed.
    """

    steps: int
    samples: list[SampleTokens]
    tokens: IntArray
    heaviest: list[SampleTokens]
    waste: float
    text_counted: bool


def sample_tokens(row: IndexRow | AssumedRow, longest_text: int) -> SampleTokens:
    """Tokens of a sample; `longest_text` stands for those of an instruction that were not counted."""
    images = [width * height // PIXELS_PER_TOKEN for width, height in zip(row.widths, row.heights, strict=True)]
    text = longest_text if row.text_tokens is None else row.text_tokens
    return SampleTokens(text, tuple(images[:-1]), images[-1])


def read_workload(
    options: ExperimentOptions, index: ShardIndex | AssumedSamples, sources: Sequence[Source], *, processes: int
) -> Workload:
    """Deals the first steps of a training to its processes.

    Args:
        options: of the experiment.
        index: of its shards, or assumed samples.
        sources: of its mixture.
        processes: on all nodes.

    Raises:
        ConfigError: where mixture and index do not belong together.
    """
    train, names = options.train, [source.name for source in sources]
    plan = MixtureOrder(index.sizes(names), [source.ratio for source in sources], options.seed)
    steps = max(1, min(train.max_train_steps, MAX_STEPS, MAX_SAMPLES // train.global_batch_size))
    samples, sums = [], []
    waited = computed = largest = 0
    heaviest: list[SampleTokens] = []
    counted = True
    for step in range(steps):
        rows = [index.row(names[source], number) for source, number in plan.batch(step, train.global_batch_size)]
        counted &= all(row.text_tokens is not None for row in rows)
        found = [sample_tokens(row, options.data.maximum_text_tokens) for row in rows]
        known = np.asarray([row.output_tokens + row.input_tokens + (row.text_tokens or 0) for row in rows])
        slots = deal(known, train.gradient_accumulation_steps, processes)
        more, own = waste(known, slots)
        waited, computed = waited + more, computed + own
        totals = np.asarray([sample.total for sample in found])[slots].sum(axis=-1)
        if totals.max() > largest:
            largest = int(totals.max())
            heaviest = [found[slot] for slot in slots[np.unravel_index(int(totals.argmax()), totals.shape)]]
        samples += found
        sums.append(totals)
    return Workload(steps, samples, np.stack(sums), heaviest, waited / (waited + computed), counted)


def longest_batch(options: ExperimentOptions, index: ShardIndex, *, processes: int) -> list[SampleTokens]:
    """The samples of the microbatch with most tokens in the first steps of a training; see `read_workload`."""
    return read_workload(options, index, sources_of(options.data), processes=processes).heaviest


@dataclass(frozen=True)
class Kinds:
    """Numbers of samples by task type, by number of references and by size of the output image."""

    task_types: Counter[str]
    references: Counter[int]
    sizes: Counter[str]


def count_kinds(index: ShardIndex | AssumedSamples, sources: Sequence[Source]) -> Kinds:
    """Counts all rows of the mixture's sources by columns: seconds for tens of millions. Nothing of assumed rows."""
    kinds = Kinds(Counter(), Counter(), Counter())
    if isinstance(index, AssumedSamples):
        return kinds
    for source in sources:
        for part in index.parts(source.name):
            for counter, column in (
                (kinds.task_types, part.column("task_type")),
                (kinds.references, pc.subtract(pc.list_value_length(part.column("widths")), 1)),
            ):
                counted = pc.value_counts(column)
                counter.update(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))
            tokens, counts = np.unique(part.column("output_tokens").to_numpy(), return_counts=True)
            for number, count in zip(tokens.tolist(), counts.tolist(), strict=True):
                kinds.sizes[size_class(number, PIXELS_PER_TOKEN)] += count
    return kinds


def histogram(values: IntArray, classes: int = 8) -> list[tuple[str, int]]:
    """Counts of values in classes of equal width, as ("from - to", count); one class where all values are equal."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [(f"{low:,}", int(values.size))]
    edges = np.unique(np.linspace(low, high + 1, classes + 1).astype(np.int64))
    counts, _ = np.histogram(values, edges)
    names = [f"{first:,} - {end - 1:,}" for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return list(zip(names, counts.tolist(), strict=True))
