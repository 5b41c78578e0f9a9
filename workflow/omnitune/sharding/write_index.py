"""Join the indexes of all shards into one, as parquet and as a file to map into memory."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omnitune.io.files import atomic_path, lock_folder
from omnitune.paths import parse_shard
from omnitune.sharding.digests import index_metadata
from omnitune.sharding.index_row import INDEX_SCHEMA

ROWS_PER_BATCH = 10_000  # of the joined index: what is held in memory while it is written


def write_index(parts: Sequence[Path], index: Path) -> int:
    """Joins the indexes of all shards, ordered by source and shard; returns the number of samples.

    Args:
        parts: the shards' indexes.
        index: the parquet file to write. Beside it comes an .arrow file (Arrow IPC, not compressed) with the same rows,
            which can be mapped into memory.

    Raises:
        ValueError: for a part that has another name or other columns than a shard's index.
    """
    samples, index = 0, Path(index)
    ordered = sorted(map(Path, parts), key=parse_shard)
    for part in ordered:
        _require_index(part, pq.read_schema(part))
    schema = INDEX_SCHEMA.with_metadata(index_metadata(ordered))
    with ExitStack() as stack:
        stack.enter_context(lock_folder(index.parent))
        joined = stack.enter_context(atomic_path(index))  # the first to be entered is the last to get its name
        mapped = stack.enter_context(atomic_path(index.with_suffix(".arrow")))
        table = stack.enter_context(pq.ParquetWriter(joined, schema, compression="zstd"))
        arrow = stack.enter_context(pa.ipc.new_file(str(mapped), schema))
        for batch in _batches(ordered):
            table.write_batch(batch.replace_schema_metadata(schema.metadata))
            arrow.write_batch(batch.replace_schema_metadata(schema.metadata))
            samples += batch.num_rows
    return samples


def _require_index(part: Path, schema: pa.Schema) -> None:
    if not schema.equals(INDEX_SCHEMA):
        raise ValueError(f"{part}: is of another version or no index of a shard. Delete it and run again.")


def _batches(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The rows of all parts in batches of ROWS_PER_BATCH, the last one smaller."""
    waiting = INDEX_SCHEMA.empty_table()
    for part in parts:
        waiting = pa.concat_tables([waiting, pq.read_table(part)])
        while waiting.num_rows >= ROWS_PER_BATCH:
            yield waiting.slice(0, ROWS_PER_BATCH).combine_chunks().to_batches()[0]
            waiting = waiting.slice(ROWS_PER_BATCH)
    if waiting.num_rows:
        yield waiting.combine_chunks().to_batches()[0]
