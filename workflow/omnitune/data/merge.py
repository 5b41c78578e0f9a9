"""Merge the validation of all sources of a data set, apply the limit on rejected rows, and cut samples into shards."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omnitune.data.parquet import ROWS_PER_GROUP, ParquetRows
from omnitune.data.summary import Tally
from omnitune.data.validate import REJECTED, SAMPLES, SCHEMA, SUMMARY, read_summary
from omnitune.files import atomic_path, json_line, write_json

SHARDS = "shards"
MANIFEST_KEYS = (
    "key",
    "source",
    "task_type",
    "instruction",
    "input_images",
    "output_image",
    "bytes",
    "sha256",
)


class RejectedTooMany(ValueError):  # noqa: N818  (a name for what happened, caught by the command line)
    """More rows were rejected than data.max_reject_fraction allows, or a source has no accepted sample."""


def shard_number(ordinal: int, samples_per_shard: int) -> int:
    """The shard, from 0, of the row with this ordinal, from 1. Neither appended nor rejected rows move others."""
    return (ordinal - 1) // samples_per_shard


def shard_name(source: str, shard: int) -> str:
    """Stem of a shard's manifest and tar."""
    return f"{source}-{shard:05d}"


def merge_validation(
    folders: Sequence[Path],
    output: Path,
    *,
    max_reject_fraction: float,
    samples_per_shard: int,
) -> dict[str, Any]:
    """Merges validated sources into samples.parquet, rejected.jsonl, summary.json and shards/{source}-{shard}.jsonl.

    Args:
        folders: what `validate_source` wrote, one folder per source, in the order of the mixture.
        output: folder to write into.
        max_reject_fraction: the largest allowed share of rejected rows in all rows, 0 to 1.
        samples_per_shard: rows of a source per shard; rejected rows leave gaps, so that no row ever moves.

    Returns:
        The merged summary, with the summary of each source under `sources`.

    Raises:
        RejectedTooMany: with the ledger kept in `{output}.failed`, as a failed rule's own outputs are deleted.
    """
    folders, output = [Path(folder) for folder in folders], Path(output)
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard: {samples_per_shard} is not allowed: needs 1 or more")
    summaries = [read_summary(folder) for folder in folders]
    tally = Tally()
    for summary in summaries:
        tally.add_summary(summary)
    _apply_limit(folders, summaries, tally, output, max_reject_fraction)
    with ExitStack() as stack:
        samples = stack.enter_context(ParquetRows(stack.enter_context(atomic_path(output / SAMPLES)), SCHEMA))
        manifests = output / f".{SHARDS}.partial"
        shutil.rmtree(manifests, ignore_errors=True)
        manifests.mkdir(parents=True)
        for folder in folders:
            _merge_source(folder, samples, manifests, tally, samples_per_shard)
    shutil.rmtree(output / SHARDS, ignore_errors=True)
    manifests.replace(output / SHARDS)
    _join(folders, output / REJECTED)
    merged = _merged_summary(tally, summaries, samples_per_shard)
    write_json(output / SUMMARY, merged)
    shutil.rmtree(_failed(output), ignore_errors=True)  # the ledger of an earlier failure no longer tells the truth
    return merged


def _merge_source(folder: Path, samples: ParquetRows, manifests: Path, tally: Tally, samples_per_shard: int) -> None:
    """Adds a source's samples to the merged file and writes its manifests, one open at a time."""
    rows = _rows(folder / SAMPLES)
    for shard, group in groupby(rows, key=lambda row: shard_number(row["ordinal"], samples_per_shard)):
        lines = []
        for row in group:
            samples.append(row)
            tally.add_output(row["sha256"][-1])
            lines.append(json_line({key: row[key] for key in MANIFEST_KEYS}))
        path = manifests / f"{shard_name(row['source'], shard)}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            yield from batch.to_pylist()


def _join(folders: Sequence[Path], path: Path) -> None:
    """All ledgers one after the other."""
    with atomic_path(path) as temporary, temporary.open("wb") as joined:
        for folder in folders:
            with (folder / REJECTED).open("rb") as ledger:
                shutil.copyfileobj(ledger, joined)


def _merged_summary(tally: Tally, summaries: list[dict[str, Any]], samples_per_shard: int) -> dict[str, Any]:
    sources = {summary["source"]: {k: v for k, v in summary.items() if k != "source"} for summary in summaries}
    return {**tally.summary(), "samples_per_shard": samples_per_shard, "sources": sources}


def _failed(output: Path) -> Path:
    return output.with_name(f"{output.name}.failed")


def _apply_limit(
    folders: list[Path], summaries: list[dict[str, Any]], tally: Tally, output: Path, max_reject_fraction: float
) -> None:
    """Raises RejectedTooMany for a source without accepted samples or for too many rejected rows in all."""
    empty = [summary["source"] for summary in summaries if not summary["accepted"]]
    rows, rejected = tally.totals["rows"], tally.totals["rejected"]
    if not empty and rejected / rows <= max_reject_fraction:  # a division gives 29/100 as 0.29 exactly
        return
    failed = _failed(output)
    _join(folders, failed / REJECTED)
    write_json(failed / SUMMARY, _merged_summary(tally, summaries, 0))
    reasons = ", ".join(f"{reason} {count}" for reason, count in tally.summary()["reasons"].items()) or "none rejected"
    ledger = f"Every rejected row with its reason: {failed / REJECTED}."
    if empty:
        names = ", ".join(repr(name) for name in empty)
        raise RejectedTooMany(f"no accepted sample in source {names} (reasons over all sources: {reasons}). {ledger}")
    raise RejectedTooMany(
        f"{rejected} of {rows} rows are rejected ({rejected / rows:.2%}): {reasons}. "
        f"data.max_reject_fraction: {max_reject_fraction} allows {max_reject_fraction:.2%}. {ledger} "
        "Correct the rows, or raise data.max_reject_fraction."
    )
