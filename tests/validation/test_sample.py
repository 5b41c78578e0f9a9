"""The columns of a sample: what the files of a data set have in common."""

import dataclasses

import pyarrow as pa
import pytest

from omnitune.io.parquet import Int32, Int64, schema_of
from omnitune.sharding.index_row import INDEX_SCHEMA
from omnitune.validation.sample import CARRIED, MANIFEST_KEYS, SCHEMA

pytestmark = pytest.mark.unit


def test_a_schema_has_a_column_for_each_field() -> None:
    fields = [("a", str), ("b", Int32), ("c", Int64 | None), ("d", list[str | None]), ("e", list[Int64])]
    columns = [pa.string(), pa.int32(), pa.int64(), pa.list_(pa.string()), pa.list_(pa.int64())]
    names = [name for name, _ in fields]
    assert schema_of(dataclasses.make_dataclass("Row", fields)) == pa.schema(list(zip(names, columns, strict=True)))
    with pytest.raises(TypeError, match=r"float.* has no column type"):
        schema_of(dataclasses.make_dataclass("Row", [("a", float)]))


def test_what_is_carried_on_has_the_same_type_in_the_index() -> None:
    assert {name: SCHEMA.field(name).type for name in CARRIED} == {
        name: INDEX_SCHEMA.field(name).type for name in CARRIED
    }
    assert set(MANIFEST_KEYS) <= set(SCHEMA.names)
