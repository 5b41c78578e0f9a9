"""The figures of what was drawn, against a count over every single draw."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnitune.config.mixtures.sources import Source
from omnitune.loading.mixture_report import mixture_report
from omnitune.loading.order import MixtureOrder
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import INDEX_SCHEMA

pytestmark = pytest.mark.unit

SIZES = {"few": 7, "many": 60}
SOURCES = [Source("many", (), 0.75, "t2i"), Source("few", (), 0.25, "edit")]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    rng = np.random.default_rng(0)
    rows = []
    for source, size in SIZES.items():
        for number in range(size):
            sides = [rng.integers(1, 40, 1 + int(rng.integers(0, 4))) * 16 for _ in "wh"]
            images = min(map(len, sides))
            row = {"source": source, "key": f"{source}_{number}", "output_tokens": int(rng.integers(1, 4096))}
            row |= {"widths": sides[0][:images].tolist(), "heights": sides[1][:images].tolist()}
            row |= {"input_tokens": int(rng.integers(0, 9000)), "text_tokens": None if number % 3 == 0 else number}
            row |= {"shard": 0, "task_type": "t2i", "instruction": "", "tar": "many.tar", "tar_bytes": 0, "sha256": ""}
            row |= {"json_offset": 0, "json_size": 0, "tar_sha256": ""}
            rows.append(row | {"image_offsets": [0] * images, "image_sizes": [0] * images})
    folder = tmp_path_factory.mktemp("index")
    table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
    pq.write_table(table, folder / "index.parquet")
    with pa.OSFile(str(folder / "index.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return ShardIndex.load(folder / "index.parquet")


@pytest.mark.parametrize(("steps", "size"), [(1, 1), (3, 2), (150, 8), (331, 4)])
def test_figures_are_those_of_every_draw(index: ShardIndex, steps: int, size: int) -> None:
    names = [source.name for source in SOURCES]
    order = MixtureOrder(index.sizes(names), [source.ratio for source in SOURCES], 1)
    drawn = [order.batch(step, size) for step in range(steps)]
    window = min(100, steps)
    for number, figures in enumerate(mixture_report(order, index, SOURCES, steps, size)):
        rows = [index.row(names[number], row) for batch in drawn for source, row in batch if source == number]
        assert (figures["source"], figures["asked"]) == (names[number], SOURCES[number].ratio)
        assert figures["samples"] == len(rows)
        assert figures["realised"] == pytest.approx(len(rows) / (steps * size))
        assert figures["passes"] == pytest.approx(len(rows) / SIZES[names[number]])
        areas = [width * height for row in rows for width, height in zip(row.widths, row.heights, strict=True)]
        assert figures["pixels"] == sum(areas)
        tokens = [row.output_tokens + row.input_tokens + (row.text_tokens or 0) for row in rows]
        assert figures["tokens"] == sum(tokens)
        counts = np.asarray([sum(source == number for source, _ in batch) for batch in drawn])
        shares = np.convolve(counts, np.ones(window), "valid") / (window * size)
        deviation = np.abs(shares - SOURCES[number].ratio).max()
        assert abs(figures["worst_window"] - SOURCES[number].ratio) == pytest.approx(deviation)
