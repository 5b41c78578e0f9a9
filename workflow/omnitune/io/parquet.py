"""Parquet files written row by row, and their schemas from dataclasses."""

import typing
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 5_000  # rows of a parquet row group: what is held in memory
BYTES_PER_GROUP = 16 << 20  # or fewer, where rows are large

Int32 = Annotated[int, pa.int32()]
Int64 = Annotated[int, pa.int64()]


def schema_of(row: type) -> pa.Schema:
    """The schema of a dataclass of `str`, `Int32`, `Int64` and lists of these: a column for each field, in order.

    Raises:
        TypeError: for a field of another type.
    """
    types = typing.get_type_hints(row, include_extras=True)
    return pa.schema([(field.name, _arrow_type(types[field.name])) for field in fields(row)])


def _arrow_type(annotation: Any) -> pa.DataType:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is str:
        return pa.string()
    if origin is Annotated:
        return arguments[1]
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if len(arguments) == 2 and arguments[1] is type(None):  # every column of a parquet file may hold null
        return _arrow_type(arguments[0])
    raise TypeError(f"{annotation} has no column type")


class ParquetRows:
    """Writes rows to a parquet file in row groups; the same rows give the same bytes."""

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._rows_per_group = rows_per_group

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def append(self, row: dict[str, Any], size: int = 0) -> None:
        """Adds one row, of about `size` bytes where rows may be large; missing columns are null."""
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= self._rows_per_group or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0
