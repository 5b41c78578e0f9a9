"""Samples that the limits of shards leave nothing of, such as strips: refused when validated sources are merged.

Validation of a source does not know these limits, so that a new one does not look at every image again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omnitune.images.prepare import ImageLimits, target_size
from omnitune.validation.sample import ValidatedSample
from omnitune.validation.source import SAMPLES, read_summary
from omnitune.validation.summary import Tally

TOO_THIN = "too_thin"
LOOKED_AT = ["ordinal", "input_images", "output_image", "widths", "heights"]
REPEATED_IN_LEDGER = ("task_type", "instruction", "input_images", "output_image")


@dataclass(frozen=True)
class ValidatedSource:
    """What a source comes to under the limits.

    Attributes:
        folder: what `validate_source` wrote.
        summary: over the rows that are left.
        refused: by ordinal, why a row that validation accepted is left out.
    """

    folder: Path
    summary: dict[str, Any]
    refused: dict[int, str] = field(default_factory=dict)

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows that are left."""
        for row in read_rows(self.folder / SAMPLES, columns and ["ordinal", *columns]):
            if row["ordinal"] not in self.refused:
                yield row

    def ledger(self) -> Iterator[dict[str, Any]]:
        """What is added to the source's ledger."""
        for row in read_rows(self.folder / SAMPLES) if self.refused else ():
            if row["ordinal"] in self.refused:
                entry = {"file": row["file"], "line": row["line"], "reason": TOO_THIN}
                content = {name: row[name] for name in REPEATED_IN_LEDGER}
                yield {**entry, "message": self.refused[row["ordinal"]], "row": content}


def under_limits(folder: Path, limits: ImageLimits | None) -> ValidatedSource:
    """A validated source without the samples that the limits leave nothing of."""
    source = ValidatedSource(folder, read_summary(folder))
    if limits is None:
        return source
    refused = {}
    for row in read_rows(folder / SAMPLES, LOOKED_AT):
        message = _fault(row, limits)
        if message is not None:
            refused[row["ordinal"]] = message
    if not refused:
        return source
    source = replace(source, refused=refused)
    return replace(source, summary=_recounted(source))


def _fault(row: dict[str, Any], limits: ImageLimits) -> str | None:
    places = [*row["input_images"], row["output_image"]]
    for k, (place, width, height) in enumerate(zip(places, row["widths"], row["heights"], strict=True)):
        most = limits.max_output_pixels if k == len(places) - 1 else limits.input_limit(len(places) - 1)
        try:
            target_size(width, height, most, limits.max_side_length)
        except ValueError as error:
            return f"{place}: {error}; cut it, or raise the limits in `data`"
    return None


def _recounted(source: ValidatedSource) -> dict[str, Any]:
    tally = Tally()
    tally.totals["blank_lines"] = source.summary["blank_lines"]
    for reason, count in source.summary["reasons"].items():
        tally.add_rejected(reason, count)
    tally.add_rejected(TOO_THIN, len(source.refused))
    for row in source.rows():
        tally.add_accepted(ValidatedSample(**row))
    repeated = tally.outputs.repeated()
    return {**source.summary, **tally.summary(None if repeated is None else int(repeated.sum()))}


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, of one row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns, use_threads=False).to_pylist()
