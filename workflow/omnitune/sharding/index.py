"""The index over all shards, mapped into memory, and random access to the samples' bytes by it."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from omnitune.errors import ConfigError
from omnitune.images.prepare import load_rgb, to_tensor
from omnitune.io import storage
from omnitune.sharding.digests import read_sources, update_digest
from omnitune.sharding.index_row import IndexRow
from omnitune.sharding.tars import REBUILD, TarReader

TOKENS = ("output_tokens", "input_tokens", "text_tokens")
PER_IMAGE = ("image_offsets", "image_sizes", "widths", "heights")
FACTS = ("key", "task_type", "instruction")  # of a sample, in its own member and in its row
KEPT_BATCHES = 256  # record batches of a mapped index that are kept open, some 10 kB of memory each


COLUMNS = [field.name for field in fields(IndexRow)]
REQUIRED = {field.name for field in fields(IndexRow) if field.default is MISSING}


class ShardIndex:
    """The samples of all shards, by source and row, with random access to their bytes.

    Rows of a source follow one another. Where index.arrow lies beside the index it is mapped into memory, so that
    tens of millions of rows take none of a process's own.

    Args:
        path: index.parquet or its URL; tars that it knows by name lie beside it.
        cache: folder of a disk cache for what is read from URLs.
        cache_bytes: its limit; 0 is no cache.
    """

    def __init__(self, path: Path | str, cache: Path | None = None, cache_bytes: int = 0) -> None:
        self.path = str(path)
        self.folder = storage.parent(self.path)
        self.tars = TarReader(self.folder, cache, cache_bytes)
        self._arguments = (path, cache, cache_bytes)
        try:
            self._batch, number = _open(self.path)
            self._first_rows, self._sources = _layout(self._batch(k) for k in range(number))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ConfigError(f"{self.path}: cannot be read as an index ({error}). {REBUILD}.") from None

    @classmethod
    def load(cls, path: Path | str, cache: Path | None = None, cache_bytes: int = 0) -> "ShardIndex":
        """Opens an index; raises ConfigError where it cannot be read."""
        return cls(path, cache, cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndex, self._arguments  # neither a map nor open files can be sent to another process

    @property
    def sources(self) -> list[str]:
        """Names of the sources, sorted."""
        return sorted(self._sources)

    def __len__(self) -> int:
        return self._first_rows[-1]

    def sizes(self, sources: Sequence[str]) -> list[int]:
        """Number of rows of each source; raises ConfigError for one that has none."""
        missing = [name for name in sources if name not in self._sources]
        if missing:
            raise ConfigError(
                f"{self.path}: has no samples of {', '.join(map(repr, missing))} (it has {', '.join(self.sources)}). "
                "Mixture and shards do not belong together. "
                "Prepare the data again: snakemake --cores 2 --forcerun validate_dataset."
            )
        return [len(self._sources[name]) for name in sources]

    def row(self, source: str, number: int) -> IndexRow:
        """One row of a source, counted from 0; ValueError for one that says not the same of each of its images."""
        batch, position = self._find(source, number)
        content = self._sound(batch.slice(position, 1)).to_pylist()[0]
        facts = [content[name] for name in PER_IMAGE]
        if len({len(values) for values in facts}) > 1 or not facts[0] or any(None in values for values in facts):
            raise ValueError(f"{self.path}: {content['key']} has not the same facts of each of its images. {REBUILD}.")
        return IndexRow(**{name: content.get(name) for name in COLUMNS})

    def tokens(self, source: str, number: int) -> int:
        """What the transformer computes on for a sample: tokens of its output, inputs and text (0: not counted)."""
        batch, position = self._find(source, number)
        return sum(batch.column(name)[position].as_py() or 0 for name in TOKENS if name in batch.schema.names)

    def parts(self, source: str) -> Iterator[pa.RecordBatch]:
        """All rows of a source in order, in pieces that are not copied."""
        rows = self._sources[source]
        number = bisect_right(self._first_rows, rows.start) - 1
        while (first := self._first_rows[number]) < rows.stop:
            batch = self._batch(number)
            start, stop = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
            yield batch.slice(start, stop - start)
            number += 1

    def check_tars(self) -> None:
        """Raises ValueError where a tar is missing or has another size than when it was indexed."""
        tars: dict[str, int] = {}
        for source in self._sources:
            for part in self.parts(source):
                known = pa.table(part).group_by(["tar", "tar_bytes"]).aggregate([])
                tars.update(zip(known["tar"].to_pylist(), known["tar_bytes"].to_pylist(), strict=True))
        self.tars.check(tars)

    def check_rows(self) -> None:
        """Raises ConfigError for other rows than the index was made of, to whose hash a training is bound."""
        if storage.is_url(self.path):
            return  # its metadata came with the rows
        for source, facts in read_sources(Path(self.path)).items():
            digest = hashlib.sha256()
            for part in self.parts(source) if source in self._sources else ():
                update_digest(digest, self._sound(part.select(["key", "sha256"])))
            if digest.hexdigest() != facts["sha256"]:
                raise ConfigError(
                    f"{self.path}: the rows of {source!r} (in index.arrow where this lies beside it) are not those "
                    f"that it was made of. {REBUILD}."
                )

    def read_images(self, row: IndexRow) -> list[bytes]:
        """The image files of a sample, inputs then output, all its members checked against the index.

        Raises:
            ValueError: where the tar cannot be read, ends early or holds other bytes than when it was indexed.
        """
        first, size = row.span
        data = memoryview(self.tars.read(row.tar, first, size, row.key, row.tar_sha256))
        places = zip([row.json_offset, *row.image_offsets], [row.json_size, *row.image_sizes], strict=True)
        members = [data[offset - first : offset - first + length] for offset, length in places]
        digest = hashlib.sha256()  # a millisecond per megabyte, a tenth of what decoding it takes
        for member in members:
            digest.update(member)
        if digest.hexdigest() != row.sha256:
            self.tars.forget(row.tar, first, size, row.tar_sha256)
            place = storage.join(self.folder, row.tar)
            raise ValueError(f"{place}: sample {row.key} at byte {first} is not what was indexed. {REBUILD}.")
        self._require_facts(row, bytes(members[0]))
        return [bytes(member) for member in members[1:]]

    def _require_facts(self, row: IndexRow, member: bytes) -> None:
        """Raises ValueError where a row says otherwise than the sample itself, by whose hash it is known."""
        facts = json.loads(member)
        for name in FACTS:
            if facts[name] != getattr(row, name):
                raise ValueError(
                    f"{self.path}: the {name} of {row.key} is not that of the sample in {row.tar}. {REBUILD}."
                )

    def images(self, row: IndexRow, output_only: bool = False) -> list[torch.Tensor]:
        """The images of a sample, inputs then output, or its output alone; float32 [3, height, width] in [-1, 1] each.

        Raises:
            ValueError: as `read_images`, and for an image that does not decode or has another size than indexed.
        """
        files = self.read_images(row)
        first = len(files) - 1 if output_only else 0
        return [self._decode(row, position, files[position]) for position in range(first, len(files))]

    def _decode(self, row: IndexRow, position: int, data: bytes) -> torch.Tensor:
        place = storage.join(self.folder, row.tar)
        where = f"{place}: image {position} of sample {row.key} at byte {row.image_offsets[position]}"
        try:
            image = load_rgb(data)
        except Exception as error:  # an image reader may raise anything on damaged bytes
            raise ValueError(f"{where} does not decode: {error}. {REBUILD}.") from None
        expected = (row.widths[position], row.heights[position])
        if image.size != expected:
            raise ValueError(f"{where} has {image.size} pixels, but {expected} in the index. {REBUILD}.")
        return to_tensor(image)

    def _sound(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The same; ValueError for rows whose texts and lists lie outside of the file, which would end the process."""
        try:
            rows.validate(full=True)
        except pa.ArrowException as error:
            raise ValueError(f"{self.path}: is damaged ({error}). {REBUILD}.") from None
        return rows

    def close(self) -> None:
        """Closes all tars; they are opened again when needed."""
        self.tars.close()

    def _find(self, source: str, number: int) -> tuple[pa.RecordBatch, int]:
        """The record batch that holds a row of a source, and the row's place in it."""
        row = self._sources[source][number]
        batch = bisect_right(self._first_rows, row) - 1
        return self._batch(batch), row - self._first_rows[batch]


def _open(path: str) -> tuple[Callable[[int], pa.RecordBatch], int]:
    """What gives the k-th record batch of an index, and their number; raises ValueError for files of another format."""
    mapped = Path(path).with_suffix(".arrow")
    if storage.is_url(path) or not mapped.is_file():
        with storage.open_file(path) as file:
            batches = pq.read_table(pa.PythonFile(file, mode="r")).to_batches()
        _require_columns(batches[0].schema if batches else pa.schema([]))
        return batches.__getitem__, len(batches)
    # Only ever replaced by renaming, which leaves this map its old file: nothing can cut it off, as a tar may be.
    reader = pa.ipc.open_file(pa.memory_map(str(mapped)))
    _require_columns(reader.schema)
    if reader.schema.metadata != pq.read_schema(path).metadata:
        raise ValueError(f"{mapped.name} beside it was made of other shards: one of the two is older")
    return lru_cache(KEPT_BATCHES)(reader.get_batch), reader.num_record_batches


def _require_columns(schema: pa.Schema) -> None:
    missing = sorted(REQUIRED - set(schema.names))
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")


def _layout(batches: Iterable[pa.RecordBatch]) -> tuple[list[int], dict[str, range]]:
    """The first row of each batch, with the number of all rows at the end, and the rows of each source."""
    first_rows, sources = [0], dict[str, range]()
    for batch in batches:
        batch.validate()
        batch.column("source").validate(full=True)
        empty = [name for name in sorted(REQUIRED) if batch.column(name).null_count]
        if empty:
            raise ValueError(f"it has rows without {', '.join(empty)}")
        runs, start = pc.run_end_encode(batch.column("source")), first_rows[-1]
        for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            known = sources.get(name, range(start, start))
            if known.stop != start:
                raise ValueError(f"rows of {name!r} do not follow one another")
            start = first_rows[-1] + end
            sources[name] = range(known.start, start)
        first_rows.append(start)
    return first_rows, sources
