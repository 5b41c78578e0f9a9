"""Rows of parquet files, and of folders that Hugging Face datasets has saved, read without code of theirs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnitune.config import Benchmark
from omnitune.errors import reason_of
from omnitune.evaluation.prompts import MAX_PROMPTS

ROWS_AT_A_TIME = 8  # each may hold images of megabytes
KINDS = ("parquet", "arrow")


def read_rows(
    benchmark: Benchmark, texts: Sequence[str], images: Sequence[str], pixels: bool
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(where it stands, file, row) of each row that is in the benchmark's language, if that names one.

    Args:
        benchmark: names a file or folder.
        texts: columns of texts, which must be there.
        images: columns of images, which must be there.
        pixels: whether these are read; else rows do not have them.

    Raises:
        ValueError: with the file, for what is none of the kinds, is damaged, lacks a column or has too many rows.
    """
    total = 0
    for file in table_files(Path(benchmark.prompts), benchmark.format):
        number = 0
        try:
            for batch in _batches(file, [*texts, *images], [*texts, *(images if pixels else ())]):
                for row in batch.to_pylist():
                    number, total = number + 1, total + 1
                    if total > MAX_PROMPTS:
                        raise ValueError(f"{file}: row {number}: a benchmark has at most {MAX_PROMPTS} prompts.")
                    if benchmark.language in (None, row.get("instruction_language")):
                        yield f"{file}: row {number}", file, row
        except (pa.ArrowException, OSError, OverflowError, MemoryError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read behind row {number}: {reason_of(error)}") from None


def table_files(path: Path, form: str) -> list[Path]:
    """The .parquet files of a folder, or else its .arrow files, sorted; or the file itself."""
    if path.is_file():
        return [path]
    for kind in KINDS:
        # what datasets keeps beside them is a cache; hidden files are no data
        found = sorted(file for file in path.rglob(f"*.{kind}") if file.is_file())
        found = [
            file for file in found if not any(part.startswith((".", "cache-")) for part in file.relative_to(path).parts)
        ]
        if found:
            return found
    problem = "holds no .parquet and no .arrow files" if path.is_dir() else "does not exist"
    raise ValueError(f"prompts: {str(path)!r}: {problem}. `format: {form}` reads these, or a folder of them.")


def image_bytes(cell: Any, name: str, where: str) -> bytes:
    """The file inside a cell of an image column; ValueError where there is none."""
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise ValueError(f"{where}: {name}: holds no image. Save the data set with its images inside.")
    data: bytes = cell["bytes"]
    return data


def _batches(file: Path, needed: Sequence[str], wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".arrow":
        yield from _arrow_batches(file, needed, wanted)
        return
    with pq.ParquetFile(file) as table:
        _require_columns(file, table.schema_arrow, needed)
        yield from table.iter_batches(ROWS_AT_A_TIME, columns=list(wanted))


def _arrow_batches(file: Path, needed: Sequence[str], wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Of an arrow stream, as datasets saves it; each batch is checked, as offsets of a stranger may lead anywhere."""
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        _require_columns(file, stream.schema, needed)
        for batch in stream:
            part = batch.select(list(wanted))
            part.validate(full=True)
            for start in range(0, part.num_rows, ROWS_AT_A_TIME):
                yield part.slice(start, ROWS_AT_A_TIME)


def _require_columns(file: Path, schema: pa.Schema, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in schema.names]
    if missing:
        raise ValueError(f"{file}: has no column {', '.join(missing)}; it has {', '.join(schema.names)[:400]}.")
    twice = [name for name in needed if schema.names.count(name) > 1]
    if twice:
        raise ValueError(f"{file}: has more than one column {', '.join(twice)}. Keep one.")
