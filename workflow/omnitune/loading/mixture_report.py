"""What a training has seen: how often it went through each source, and how many pixels and tokens that were."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from omnitune.config.mixtures.sources import Source
from omnitune.loading.order import MixtureOrder
from omnitune.sharding.index import TOKENS, ShardIndex

IntArray = npt.NDArray[np.int64]


def mixture_report(
    order: MixtureOrder, index: ShardIndex, sources: Sequence[Source], last_step: int, global_batch_size: int
) -> list[dict[str, Any]]:
    """Figures of each source over the steps 0 .. last_step - 1, of exactly the samples that were drawn.

    Args:
        order: over `sources`, in the same order.
        index: of the shards.
        sources: the mixture.
        last_step, global_batch_size: what was trained.

    Returns:
        Per source: source; asked and realised, its share of the draws; worst_window, its share in that run of 100 steps
        where it is furthest from the one asked for; samples, the number of draws; passes, how often these go through
        the source; pixels of all images; tokens of images and text, without those that dropout has taken.
    """
    counts = order.counts(0, last_step, global_batch_size)
    worst = order.worst_shares(last_step, global_batch_size)
    return [
        {
            "source": source.name,
            "asked": source.ratio,
            "realised": counts[number] / (last_step * global_batch_size),
            "worst_window": worst[number],
            "samples": counts[number],
            "passes": counts[number] / int(order.sizes[number]),
            **_amounts(order, index, number, source.name, counts[number]),
        }
        for number, source in enumerate(sources)
    ]


def _amounts(order: MixtureOrder, index: ShardIndex, number: int, name: str, draws: int) -> dict[str, int]:
    """Pixels and tokens of the first so many draws from a source."""
    passes, rows = order.passes(number, draws)
    per_row = {
        "pixels": np.concatenate([_pixels(part) for part in index.parts(name)]),
        "tokens": np.concatenate([_tokens(part) for part in index.parts(name)]),
    }
    return {name: passes * int(values.sum()) + int(values[rows].sum()) for name, values in per_row.items()}


def _pixels(part: pa.RecordBatch) -> IntArray:
    """Pixels of all images of each row."""
    widths, heights = part.column("widths"), part.column("heights")
    areas = widths.flatten().to_numpy().astype(np.int64) * heights.flatten().to_numpy()
    images = pc.list_value_length(widths).to_numpy()
    return np.add.reduceat(areas, np.cumsum(images) - images)  # a row has an image at least


def _tokens(part: pa.RecordBatch) -> IntArray:
    columns = [part.column(name) for name in TOKENS if name in part.schema.names]
    return np.sum([pc.fill_null(column, 0).to_numpy().astype(np.int64) for column in columns], axis=0)
