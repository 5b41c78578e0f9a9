"""Validate sources: decode every image of every row, and account for each row as accepted or rejected with a reason.

Files are read as streams and results written as they come, so a source may be larger than memory.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from omnitune.config import ConfigError
from omnitune.console import Progress
from omnitune.data.decode import MAX_PIXELS, ImageFacts, ImageRefused, inspect_image
from omnitune.data.mixture import Source, read_mixture
from omnitune.data.parquet import ParquetRows
from omnitune.data.sample import Refused, check_row, decode_line
from omnitune.data.summary import Tally
from omnitune.data.workers import ordered_map
from omnitune.files import atomic_path, json_line, write_json

SAMPLES = "samples.parquet"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
LINES_PER_TASK = 16
LEDGER_TEXT = 2_000  # characters of an unreadable line that the ledger repeats

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("ordinal", pa.int64()),
        ("key", pa.string()),
        ("task_type", pa.string()),
        ("instruction", pa.string()),
        ("input_images", pa.list_(pa.string())),
        ("output_image", pa.string()),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("bytes", pa.list_(pa.int64())),
        ("sha256", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Line:
    """A line of a source: its file, its number there from 1, its ordinal in the source from 1, and its bytes."""

    file: Path
    number: int
    ordinal: int
    content: bytes


@dataclass
class Verdict:
    """What became of a line: `sample` (a row of samples.parquet) or `rejected` (a row of the ledger)."""

    sample: dict[str, Any] | None = None
    rejected: dict[str, Any] | None = None
    formats: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def validate_source(
    source_name: str,
    files: Sequence[Path],
    output: Path,
    *,
    workers: int = 1,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Validates one source and writes samples.parquet, rejected.jsonl and summary.json into `output`.

    Args:
        source_name: the name that `read_mixture` gave; keys of samples start with it.
        files: its .jsonl files.
        output: folder for the three files.
        workers: processes that decode; the written bytes do not depend on it.
        progress: report on stderr.
        max_pixels: images of more pixels are rejected before they are decoded.

    Returns:
        The summary. Rejected rows are no error here: the limit applies to the whole mixture, in `merge_validation`.

    Raises:
        ConfigError: for a .jsonl file that is not there.
        OSError: where a disk fails while an image is read.
    """
    total = sum(_count_lines(file, source_name) for file in files)
    tally = Tally()
    tasks = _tasks(source_name, files, max_pixels, tally)
    with ExitStack() as stack:
        # Entered in this order, they are renamed in the reverse one, and summary.json comes last of all.
        samples_path = stack.enter_context(atomic_path(output / SAMPLES))
        rejected_path = stack.enter_context(atomic_path(output / REJECTED))
        samples = stack.enter_context(ParquetRows(samples_path, SCHEMA))
        rejected = stack.enter_context(rejected_path.open("w", encoding="utf-8"))
        reporter = stack.enter_context(Progress(f"validate {source_name}", total, "lines", enabled=progress))
        for verdicts in ordered_map(check_lines, tasks, workers):
            _record(verdicts, samples, rejected, tally)
            reporter.advance(len(verdicts))
        reporter.advance(tally.totals["blank_lines"])
    summary = {"source": source_name, "files": [str(file) for file in files], **tally.summary()}
    write_json(output / SUMMARY, summary)
    return summary


def _record(verdicts: list[Verdict], samples: ParquetRows, rejected: IO[str], tally: Tally) -> None:
    for verdict in verdicts:
        if verdict.sample is not None:
            samples.append(verdict.sample)
            tally.add_accepted(verdict.sample, verdict.formats, verdict.notes)
        else:
            assert verdict.rejected is not None
            rejected.write(json_line(verdict.rejected))
            tally.add_rejected(verdict.rejected["reason"])


def _count_lines(file: Path, source_name: str) -> int:
    """Number of lines of a file; raises ConfigError where it cannot be read."""
    try:
        with Path(file).open("rb") as stream:
            return sum(1 for _ in stream)
    except OSError as error:
        raise ConfigError(
            f"source {source_name!r}: {file}: cannot be read ({error.strerror}). "
            "Check the path in the mixture, or run the rule that writes the file."
        ) from None


def read_lines(files: Sequence[Path]) -> Iterator[Line]:
    """All lines of a source's files in order. Blank ones are included, as they count for the ordinal."""
    ordinal = 0
    for file in files:
        with Path(file).open("rb") as stream:
            for number, content in enumerate(stream, start=1):
                ordinal += 1
                text = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                yield Line(Path(file), number, ordinal, text.strip())


def _tasks(name: str, files: Sequence[Path], max_pixels: int, tally: Tally) -> Iterator[tuple[str, int, list[Line]]]:
    """Lines in portions for the workers; blank ones are counted and left out."""

    def filled() -> Iterator[Line]:
        for line in read_lines(files):
            if line.content:
                yield line
            else:
                tally.totals["blank_lines"] += 1

    lines = filled()
    while portion := list(islice(lines, LINES_PER_TASK)):
        yield name, max_pixels, portion


def check_lines(task: tuple[str, int, list[Line]]) -> list[Verdict]:
    """Checks a portion of lines; runs in a worker process."""
    source_name, max_pixels, lines = task
    return [check_line(source_name, line, max_pixels) for line in lines]


def check_line(source_name: str, line: Line, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Accepts or rejects one line, with all of its images decoded."""
    content: Any = line.content.decode("utf-8", errors="replace")[:LEDGER_TEXT]
    try:
        content = decode_line(line.content)
        row = check_row(content)
        paths, facts = [], []
        for image in (*row.input_images, row.output_image):
            path, fact = _inspect(image, line.file, max_pixels)
            paths.append(path)
            facts.append(fact)
    except Refused as error:
        rejected = {"file": str(line.file), "line": line.number, "reason": error.reason, "message": error.message}
        return Verdict(rejected={**rejected, "row": content})
    sample = {
        "source": source_name,
        "file": str(line.file),
        "line": line.number,
        "ordinal": line.ordinal,
        "key": f"{source_name}_{line.ordinal:08d}",
        "task_type": row.task_type,
        "instruction": row.instruction,
        "input_images": [str(path) for path in paths[:-1]],
        "output_image": str(paths[-1]),
        "widths": [fact.width for fact in facts],
        "heights": [fact.height for fact in facts],
        "bytes": [fact.bytes for fact in facts],
        "sha256": [fact.sha256 for fact in facts],
    }
    notes = [*row.notes, *(note for fact in facts for note in fact.notes)]
    return Verdict(sample=sample, formats=[fact.format for fact in facts], notes=notes)


def _inspect(image: str, file: Path, max_pixels: int) -> tuple[Path, ImageFacts]:
    """The path of an image, from the .jsonl's folder or else from the working directory, and its facts."""
    places = list(dict.fromkeys([file.parent / image, Path(image)]))
    for place in places:
        try:
            return place, inspect_image(place, max_pixels)
        except ImageRefused as error:
            if error.reason != "missing":
                raise
    tried = " and ".join(str(place) for place in places)
    raise ImageRefused("missing", f"{image} does not exist; tried {tried}")


def check_files(source: Source) -> None:
    """Raises ConfigError where a .jsonl file of a source is not there, naming the mixture and the places tried."""
    for file in source.files:
        if not file.is_file():
            tried = " and ".join(str(place) for place in source.places(file))
            raise ConfigError(f"{source.mixture}: source {source.name!r}: no such file of samples; tried {tried}.")


def validate_mixture(
    mixture: Path | str,
    output: Path,
    *,
    workers: int = 1,
    progress: bool = True,
    max_reject_fraction: float = 0.01,
    samples_per_shard: int = 1000,
) -> dict[str, Any]:
    """Validates every source of a mixture into output/sources/{source} and merges them into `output`.

    Returns the merged summary. Raises what `read_mixture`, `validate_source` and `merge_validation` raise.
    """
    from omnitune.data.merge import merge_validation

    sources = read_mixture(mixture)
    for source in sources:
        check_files(source)
    folders = []
    for source in sources:
        folder = Path(output) / "sources" / source.name
        validate_source(source.name, source.files, folder, workers=workers, progress=progress)
        folders.append(folder)
    return merge_validation(
        folders, Path(output), max_reject_fraction=max_reject_fraction, samples_per_shard=samples_per_shard
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a validated source or data set; ConfigError where it is missing."""
    try:
        content: dict[str, Any] = json.loads((Path(folder) / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: holds no {SUMMARY}; validate first (omnitune validate).") from None
    return content
