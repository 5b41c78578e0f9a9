"""Merge the validation of all sources of a data set, apply the limit on rejected rows, and cut samples into shards."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from omnitune.config.choices import IMAGE_FORMATS
from omnitune.config.mixtures.sources import read_mixture
from omnitune.errors import shown
from omnitune.images.prepare import ImageLimits, target_size
from omnitune.io.files import atomic_folder, atomic_path, json_line, lock_folder, sha256_of, write_json, write_text
from omnitune.io.parquet import ParquetRows
from omnitune.io.storage import redact
from omnitune.paths import shard_name
from omnitune.validation.limits import ValidatedSource, under_limits
from omnitune.validation.sample import MANIFEST_KEYS, SCHEMA
from omnitune.validation.source import REJECTED, SAMPLES, SUMMARY, Checks, check_files, validate_source
from omnitune.validation.summary import Tally

SHARDS = "shards"
DIGEST = ".sha256"  # beside a manifest: small enough for Snakemake to compare, which goes by a large file's age alone
MAX_SHARDS = 100_000  # of a source: names have five digits
REPEATED = "output image has the same bytes as an earlier row's"
MEMBER_BYTES = 1024  # about what a tar adds to each member: blocks of headers and of padding


class RejectedTooMany(ValueError):  # noqa: N818  (a name for what happened, caught by the command line)
    """More rows were rejected than data.max_reject_fraction allows, or a source has no accepted sample.

    Attributes:
        summary: the merged summary.
    """

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


@dataclass(frozen=True)
class ShardCut:
    """Where the shards of a source end: after so many rows, or at about so many bytes.

    By rows, neither appended nor newly rejected rows move others. By bytes, a row's shard depends on the rows before
    it.

    Attributes:
        samples_per_shard: rows, the rejected ones included.
        shard_bytes: estimated size of a tar at which it ends.
        limits: the arguments of `omnitune.images.prepare.ImageLimits`, under which images are written: samples that
            they leave nothing of are refused. shard_bytes needs them.
    """

    samples_per_shard: int | None = None
    shard_bytes: int | None = None
    limits: Mapping[str, Any] | None = None

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "ShardCut":
        """From the keys of `data` that affect manifests."""
        limits = vars(ImageLimits.from_keys(keys))
        if keys["shard_bytes"] is None:
            return cls(samples_per_shard=keys["samples_per_shard"], limits=limits)
        return cls(shard_bytes=keys["shard_bytes"], limits=limits)

    def __post_init__(self) -> None:
        for name, value in (("samples_per_shard", self.samples_per_shard), ("shard_bytes", self.shard_bytes)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not allowed: needs 1 or more")
        if (self.samples_per_shard is None) == (self.shard_bytes is None):
            raise ValueError("shards are cut either by samples_per_shard or by shard_bytes: give one of the two")
        if self.shard_bytes is not None and self.limits is None:
            raise ValueError("shard_bytes needs limits, as the size of a tar depends on them")

    def numbers(self) -> Callable[[Mapping[str, Any]], int]:
        """A function that takes the rows of one source in order, and gives each row's shard, from 0."""
        if self.samples_per_shard is not None:
            rows = self.samples_per_shard
            return lambda row: (row["ordinal"] - 1) // rows
        return _ByBytes(self.shard_bytes or 0, ImageLimits(**self.limits or {}))


class _ByBytes:
    """Gives the next shard's number once the estimated bytes of the current one reach the limit."""

    def __init__(self, shard_bytes: int, limits: ImageLimits) -> None:
        self.shard_bytes, self.limits = shard_bytes, limits
        self.shard, self.filled = 0, 0.0

    def __call__(self, row: Mapping[str, Any]) -> int:
        if self.filled >= self.shard_bytes:
            self.shard, self.filled = self.shard + 1, 0.0
        self.filled += estimated_bytes(row, self.limits)
        return self.shard


def estimated_bytes(row: Mapping[str, Any], limits: ImageLimits) -> float:
    """About how many bytes a sample takes in a tar: images within the limits keep theirs, others are written anew."""
    inputs = len(row["input_images"])
    total = (len(row["bytes"]) + 1.0) * MEMBER_BYTES + len(row["instruction"].encode())
    for k, (width, height, size) in enumerate(zip(row["widths"], row["heights"], row["bytes"], strict=True)):
        most = limits.max_output_pixels if k == inputs else limits.input_limit(inputs)
        total += (
            size if _is_kept(width, height, most, limits) else min(size, _written_bytes(width, height, most, limits))
        )
    return total


def _is_kept(width: int, height: int, max_pixels: int, limits: ImageLimits) -> bool:
    return width * height <= max_pixels and max(width, height) <= limits.max_side_length


def _written_bytes(width: int, height: int, max_pixels: int, limits: ImageLimits) -> float:
    new_width, new_height = target_size(width, height, max_pixels, limits.max_side_length)
    return IMAGE_FORMATS[limits.image_format].bytes_per_pixel * new_width * new_height


def merge_validation(
    folders: Sequence[Path],
    output: Path,
    *,
    max_reject_fraction: float,
    cut: ShardCut,
) -> dict[str, Any]:
    """Merges validated sources into samples.parquet, rejected.jsonl, summary.json and shards/{source}-{shard}.jsonl.

    Beside each of these manifests lies its SHA-256. Output images with the bytes of an earlier row's are noted on their
    rows, here as this goes across sources.

    Args:
        folders: what `validate_source` wrote, one folder per source, in the order of the mixture. Samples that the
            limits leave nothing of are refused here.
        output: folder to write into.
        max_reject_fraction: the largest allowed share of rejected rows in all rows, 0 to 1.
        cut: where shards end.

    Returns:
        The merged summary, with the summary of each source under `sources`.

    Raises:
        RejectedTooMany: with the ledger kept in `{output}.failed`, as a failed rule's own outputs are deleted.
        ValueError: where a source has too many shards.
    """
    output, limits = Path(output), ImageLimits(**cut.limits) if cut.limits else None
    sources = [under_limits(Path(folder), limits) for folder in folders]
    tally = Tally()
    for source in sources:
        tally.add_summary(source.summary)
        for row in source.rows(["sha256"]):
            tally.outputs.add(row["sha256"][-1])
    repeated = tally.outputs.repeated()
    merged = _merged_summary(tally, [source.summary for source in sources], repeated, cut)
    _apply_limit(sources, merged, output, max_reject_fraction)
    flags = np.zeros(merged["accepted"], dtype=np.bool_) if repeated is None else repeated
    with lock_folder(output):
        (output / SUMMARY).unlink(missing_ok=True)  # it comes last, and says that the rest is whole
        _merge_samples(sources, output, flags, cut)
        _join_ledgers(sources, output / REJECTED)
        write_json(output / SUMMARY, merged)
    shutil.rmtree(_failed(output), ignore_errors=True)  # the ledger of an earlier failure no longer tells the truth
    return merged


def _merge_samples(sources: Sequence[ValidatedSource], output: Path, repeated: np.ndarray, cut: ShardCut) -> None:
    """Writes samples.parquet, and the folder of manifests whole: those of an earlier run must not stay in it."""
    require_manifests(output / SHARDS)
    with atomic_folder(output / SHARDS) as manifests:
        with atomic_path(output / SAMPLES) as temporary, ParquetRows(temporary, SCHEMA) as samples:
            flags = iter(repeated)
            for source in sources:
                _merge_source(source, flags, samples, manifests, cut)
        for manifest in sorted(manifests.glob("*.jsonl")):
            write_text(manifest.with_suffix(DIGEST), sha256_of(manifest) + "\n")


def require_manifests(folder: Path) -> None:
    """Raises ValueError for a folder of manifests that holds anything else: it is replaced whole."""
    others = (
        [path.name for path in folder.iterdir() if path.suffix not in (".jsonl", DIGEST)] if folder.is_dir() else []
    )
    if others:
        raise ValueError(f"{folder}: holds {shown(min(others))}, which no validation wrote; name another folder.")


def _merge_source(
    source: ValidatedSource, repeated: Iterator[np.bool_], samples: ParquetRows, manifests: Path, cut: ShardCut
) -> None:
    """Adds a source's samples to the merged file and writes its manifests, one open at a time."""
    shard_of, current = cut.numbers(), -1
    with ExitStack() as stack:
        manifest: IO[str] | None = None
        for row in source.rows():
            if next(repeated):
                row["notes"].append(REPEATED)
            samples.append(row, len(row["instruction"]))
            shard = shard_of(row)
            if manifest is None or shard != current:
                _check_number(shard, row["source"])
                stack.close()
                current, path = shard, manifests / f"{shard_name(row['source'], shard)}.jsonl"
                manifest = stack.enter_context(path.open("w", encoding="utf-8"))
            manifest.write(json_line({key: row[key] for key in MANIFEST_KEYS}))


def _check_number(shard: int, source: str) -> None:
    if shard >= MAX_SHARDS:
        raise ValueError(
            f"source {source!r} has more than {MAX_SHARDS} shards; raise data.samples_per_shard or data.shard_bytes, "
            "or split the source"
        )


def _join_ledgers(sources: Sequence[ValidatedSource], path: Path) -> None:
    """All ledgers one after the other, each with what the limits refuse."""
    with atomic_path(path) as temporary, temporary.open("wb") as joined:
        for source in sources:
            with (source.folder / REJECTED).open("rb") as ledger:
                shutil.copyfileobj(ledger, joined)
            for entry in source.ledger():
                joined.write(redact(json_line(entry)).encode("utf-8"))


def _merged_summary(
    tally: Tally, summaries: list[dict[str, Any]], repeated: np.ndarray | None, cut: ShardCut
) -> dict[str, Any]:
    count = None if repeated is None else int(repeated.sum())
    if count:
        tally.counts["notes"][REPEATED] = count
    return {
        "depth": ", ".join(sorted({summary["depth"] for summary in summaries})),
        **tally.summary(count),
        "samples_per_shard": cut.samples_per_shard,
        "shard_bytes": cut.shard_bytes,
        "sources": {summary["source"]: {k: v for k, v in summary.items() if k != "source"} for summary in summaries},
    }


def _failed(output: Path) -> Path:
    output = output.absolute()  # `.` has no name
    return output.with_name(f"{output.name}.failed")


def _apply_limit(
    sources: list[ValidatedSource], merged: dict[str, Any], output: Path, max_reject_fraction: float
) -> None:
    """Raises RejectedTooMany for a source without accepted samples or for too many rejected rows in all."""
    empty = [name for name, summary in merged["sources"].items() if not summary["accepted"]]
    rows, rejected = merged["rows"], merged["rejected"]
    if not empty and rejected / rows <= max_reject_fraction:  # a division gives 29/100 as 0.29 exactly
        return
    failed = _failed(output)
    _join_ledgers(sources, failed / REJECTED)
    write_json(failed / SUMMARY, merged)
    reasons = ", ".join(f"{reason} {count}" for reason, count in merged["reasons"].items()) or "none rejected"
    ledger = f"Every rejected row with its reason: {failed / REJECTED}."
    if empty:
        names = ", ".join(repr(name) for name in empty)
        message = f"no accepted sample in source {names} (reasons over all sources: {reasons}). {ledger}"
        raise RejectedTooMany(message, merged)
    raise RejectedTooMany(
        f"{rejected} of {rows} rows are rejected ({rejected / rows:.2%}): {reasons}. "
        f"data.max_reject_fraction: {max_reject_fraction} allows {max_reject_fraction:.2%}. {ledger} "
        "Correct the rows, or raise data.max_reject_fraction.",
        merged,
    )


def validate_mixture(
    mixture: Path | str,
    output: Path,
    checks: Checks | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    max_reject_fraction: float = 0.01,
    source_roots: Sequence[str] | None = None,
    **cut: Any,
) -> dict[str, Any]:
    """Validates every source of a mixture into output/sources/{source} and merges them into `output`.

    `checks` are by default those of `Checks()`, `cut` the arguments of `ShardCut`, by default samples_per_shard=1000;
    source_roots those of `read_mixture`.
    Returns the merged summary. Raises what `read_mixture`, `validate_source` and `merge_validation` raise.
    """
    shard_cut = ShardCut(**cut or {"samples_per_shard": 1000})
    require_manifests(Path(output) / SHARDS)
    sources = read_mixture(mixture, source_roots)
    for source in sources:
        check_files(source)
    folders = []
    for source in sources:
        folder = Path(output) / "sources" / source.name
        validate_source(source.name, source.files, folder, checks or Checks(), workers=workers, progress=progress)
        folders.append(folder)
    return merge_validation(folders, Path(output), max_reject_fraction=max_reject_fraction, cut=shard_cut)
