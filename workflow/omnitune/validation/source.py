"""Validate sources: look at every image of every row, and account for each row as accepted or rejected with a reason.

Files are read as streams and results written as they come, so a source may be larger than memory.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, get_args

from omnitune.config.mixtures.sources import Source
from omnitune.console import Progress
from omnitune.errors import ConfigError, Refused
from omnitune.images.inspect import Depth, ImageFacts, inspect_image
from omnitune.images.preview import SHIFTED, is_shifted
from omnitune.images.verdicts import DECODE_SECONDS, MAX_PIXELS, ImageRefused
from omnitune.io.files import atomic_path, json_line, lock_folder, write_json
from omnitune.io.jsonl import Line, count_lines, decode_line, local_copies, read_lines
from omnitune.io.kept import Summary, read_kept
from omnitune.io.parquet import ParquetRows
from omnitune.io.storage import is_url, redact
from omnitune.io.url_limits import USUAL, UrlLimits, fetching
from omnitune.io.workers import ordered_map
from omnitune.models.text.prompts import count_tokens, load_tokenizer
from omnitune.paths import path_hint
from omnitune.validation.image_places import image_places
from omnitune.validation.row import KNOWN_KEYS, Row, check_row
from omnitune.validation.sample import SCHEMA, ValidatedSample
from omnitune.validation.summary import Tally

SAMPLES = "samples.parquet"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
# A worker gets so many lines at once, and no more bytes than this.
LINES_PER_TASK: dict[Depth, int] = {"full": 16, "header": 128}
BYTES_PER_TASK = 1 << 20
LEDGER_TEXT = 2_000  # characters of a message that the ledger holds
NOTE_TEXT = 200  # characters of a note


@dataclass(frozen=True)
class Checks:
    """What is looked at, and what is allowed.

    Attributes:
        depth: `full` decodes and hashes every image; `header` reads its first bytes.
        max_image_pixels: images of more pixels are refused before they are decoded.
        image_root: folder or URL below which alone images may lie; None allows every place.
        maximum_text_tokens: instructions of more tokens are refused.
        use_chat_template: whether the tokens are those of the whole chat, as training wraps instructions in it.
        input_limits: number of limits in data.max_input_pixels where that is a list; more input images are noted.
        tokenizer: pipeline folder whose tokenizer counts; None: tokens are neither counted nor limited.
        urls: how much is read from URLs, how long, and from where.
        source_roots: below which redirects of .jsonl files must stay; none: they may lead anywhere.
    """

    depth: Depth = "full"
    max_image_pixels: int = MAX_PIXELS
    image_root: str | None = None
    maximum_text_tokens: int = 888
    use_chat_template: bool = True
    input_limits: int | None = None
    tokenizer: str | None = None
    urls: UrlLimits = USUAL
    source_roots: tuple[str, ...] = ()
    instruction_keys: tuple[str, ...] = ("instruction",)

    @classmethod
    def from_keys(
        cls, keys: Mapping[str, Any], tokenizer: str | None = None, source_roots: Sequence[str] | None = None
    ) -> "Checks":
        """From the keys of `data` that affect samples."""
        return cls(
            depth=keys["validation_depth"],
            max_image_pixels=keys["max_image_pixels"],
            image_root=keys["image_root"],
            maximum_text_tokens=keys["maximum_text_tokens"],
            use_chat_template=keys["use_chat_template"],
            input_limits=keys["max_input_pixels"],
            tokenizer=tokenizer,
            urls=UrlLimits.from_keys(keys),
            source_roots=tuple(source_roots or ()),
            instruction_keys=tuple(keys["instruction_keys"]),
        )

    def __post_init__(self) -> None:
        if self.depth not in get_args(Depth):
            raise ValueError(f"depth: {self.depth!r} is not allowed; use {' or '.join(get_args(Depth))}")


@dataclass(frozen=True)
class Verdict:
    """What became of a line: `sample` (a row of samples.parquet) or `rejected` (a row of the ledger)."""

    sample: ValidatedSample | None = None
    rejected: dict[str, Any] | None = None


def validate_source(
    source_name: str,
    files: Sequence[str | Path],
    output: Path,
    checks: Checks = Checks(),
    *,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Validates one source and writes samples.parquet, rejected.jsonl and summary.json into `output`.

    Args:
        source_name: the name that `read_mixture` gave; keys of samples start with it.
        files: paths or URLs of its .jsonl files.
        output: folder for the three files.
        checks: what is looked at.
        workers: processes that look at images; the written bytes do not depend on it.
        progress: report on stderr.

    Returns:
        The summary. Rejected rows are no error here: the limit applies to the whole mixture, in `merge_validation`.

    Raises:
        ConfigError: for a .jsonl file that is not there, or a folder without a tokenizer.
        OSError, ValueError: where a disk or service fails, which is no verdict on an image.
    """
    output.mkdir(parents=True, exist_ok=True)
    if checks.tokenizer:
        _tokenizer(checks.tokenizer)  # before the workers fork, which share its memory then
    with lock_folder(output):
        tally = _write_verdicts(source_name, files, output, checks, workers, progress)
        repeated = tally.outputs.repeated()
        summary = {
            "source": source_name,
            "files": [str(file) for file in files],
            "depth": checks.depth,
            **tally.summary(None if repeated is None else int(repeated.sum())),
        }
        write_json(output / SUMMARY, summary)
    return summary


def _write_verdicts(
    source_name: str, files: Sequence[str | Path], output: Path, checks: Checks, workers: int, progress: bool
) -> Tally:
    """Writes a source's samples and ledger; returns the counts over both."""
    tally = Tally()
    with ExitStack() as stack:
        with fetching(checks.urls, checks.source_roots, "samples"):
            copies = stack.enter_context(local_copies(files, source_name, output))
        total = sum(count_lines(path, source_name) for _, path in copies)
        # Both get their names only when all is written; summary.json, which says that they are whole, comes after them.
        samples_path = stack.enter_context(atomic_path(output / SAMPLES))
        rejected_path = stack.enter_context(atomic_path(output / REJECTED))
        samples = stack.enter_context(ParquetRows(samples_path, SCHEMA))
        rejected = stack.enter_context(rejected_path.open("w", encoding="utf-8"))
        reporter = stack.enter_context(Progress(f"validate {source_name}", total, "lines", enabled=progress))
        check = partial(check_line, source_name, checks=checks)
        for verdicts in ordered_map(check, _portions(copies, checks, tally), workers, verdict_on_death):
            _record(verdicts, samples, rejected, tally)
            reporter.advance(len(verdicts), f"{tally.totals['rejected']} rejected")
        reporter.advance(tally.totals["blank_lines"])
    return tally


def _record(verdicts: list[Verdict], samples: ParquetRows, rejected: IO[str], tally: Tally) -> None:
    for verdict in verdicts:
        if verdict.sample is not None:
            samples.append(vars(verdict.sample), len(verdict.sample.instruction))
            tally.add_accepted(verdict.sample)
        else:
            assert verdict.rejected is not None
            rejected.write(redact(json_line(verdict.rejected)))
            tally.add_rejected(verdict.rejected["reason"])


def _portions(files: Sequence[tuple[str, Path]], checks: Checks, tally: Tally) -> Iterator[list[Line]]:
    """Lines in portions for the workers; blank ones are counted and left out."""
    portion: list[Line] = []
    size = 0
    for line in read_lines(files):
        if line.is_blank:
            tally.totals["blank_lines"] += 1
            continue
        portion.append(line)
        size += len(line.content)
        if len(portion) >= LINES_PER_TASK[checks.depth] or size >= BYTES_PER_TASK:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def check_line(source_name: str, line: Line, checks: Checks = Checks()) -> Verdict:
    """Accepts or rejects one line, with all of its images."""
    content: Any = None
    try:
        content = decode_line(line)
        row = check_row(content, checks.instruction_keys)
        tokens = _count_tokens(row.instruction, checks)
        with fetching(checks.urls, [checks.image_root]):
            pair = row.task_type == "edit" and len(row.input_images) == 1
            images = [_inspect(image, line.file, checks, pair) for image in (*row.input_images, row.output_image)]
    except Refused as error:
        return _rejected(line, error.reason, error.message, content)
    places, facts = [place for place, _ in images], [fact for _, fact in images]
    sample = ValidatedSample(
        source=source_name,
        file=line.file,
        line=line.number,
        ordinal=line.ordinal,
        key=f"{source_name}_{line.ordinal:08d}",
        task_type=row.task_type,
        instruction=row.instruction,
        text_tokens=tokens,
        input_images=places[:-1],
        output_image=places[-1],
        widths=[fact.width for fact in facts],
        heights=[fact.height for fact in facts],
        formats=[fact.format for fact in facts],
        bytes=[fact.bytes for fact in facts],
        sha256=[fact.sha256 for fact in facts],
        notes=[note[:NOTE_TEXT] for note in _notes(line, row, facts, checks)],
    )
    return Verdict(sample=sample)


def verdict_on_death(line: Line, code: int) -> Verdict:
    """Rejects a line whose images ended the process that decoded them, with that exit code."""
    try:
        content = decode_line(line)
    except Refused:
        content = None
    if code == -signal.SIGPROF:
        message = f"an image of this row takes more than {DECODE_SECONDS} seconds of a processor to look at"
        return _rejected(line, "decoding_too_slow", message, content)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    memory = ", most likely for want of memory: give the job more (mem_mb), or fewer workers"
    message = f"the process that looked at this row ended {how}, two times{memory if code == -signal.SIGKILL else ''}"
    return _rejected(line, "decoder_died", message, content)


def _rejected(line: Line, reason: str, message: str, content: Any) -> Verdict:
    place = {"file": line.file, "line": line.number, "reason": reason}
    return Verdict(rejected={**place, "message": message[:LEDGER_TEXT], "row": _known_part(content)})


def _known_part(content: Any) -> dict[str, Any] | None:
    """What the ledger repeats of a line: the keys of a sample alone, as another file may have been meant."""
    known = {key: value for key, value in (content or {}).items() if key in KNOWN_KEYS}
    return known or None


def _notes(line: Line, row: Row, facts: list[ImageFacts], checks: Checks) -> list[str]:
    """What is unusual about an accepted line, each thing once."""
    notes = ["the file starts with a byte order mark, which is left out"] if line.has_bom else []
    notes += row.notes
    if checks.input_limits is not None and len(row.input_images) > checks.input_limits:
        notes.append(f"more input images than the {checks.input_limits} entries of max_input_pixels: the last holds")
    before, after = facts[0], facts[-1]
    if before.preview and after.preview and (before.width, before.height) == (after.width, after.height):
        notes += [SHIFTED] if is_shifted(before.preview, after.preview) else []
    return list(dict.fromkeys([*notes, *chain.from_iterable(fact.notes for fact in facts)]))


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Any:
    try:
        return load_tokenizer(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _count_tokens(instruction: str, checks: Checks) -> int | None:
    if not checks.tokenizer:
        return None
    tokens = count_tokens(_tokenizer(checks.tokenizer), instruction, checks.use_chat_template)
    if tokens > checks.maximum_text_tokens:
        whole = " with its chat" if checks.use_chat_template else ""
        raise Refused(
            "instruction_too_long",
            f"the instruction has {tokens} tokens{whole}; data.maximum_text_tokens allows {checks.maximum_text_tokens}",
        )
    return tokens


def _inspect(image: str, samples: str, checks: Checks, preview: bool) -> tuple[str, ImageFacts]:
    """The first place where an image lies, and its facts."""
    places = image_places(image, samples, checks.image_root)
    for place in places:
        try:
            return place, inspect_image(place, checks.max_image_pixels, checks.depth, preview=preview)
        except ImageRefused as error:
            if error.reason != "missing":
                raise
    raise ImageRefused("missing", f"{image} does not exist; tried {' and '.join(places)}{path_hint(image)}")


def check_files(source: Source) -> None:
    """Raises ConfigError where a .jsonl file of a source is not there, naming the mixture and the places tried."""
    for file in source.files:
        if not is_url(file) and not Path(file).is_file():
            tried = " and ".join(str(place) for place in source.places(file))
            raise ConfigError(
                f"{source.mixture}: source {source.name!r}: no such file of samples; tried "
                f"{tried}{path_hint(str(file))}."
            )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a validated source or data set; ConfigError where it is missing, ValueError for a damaged one."""
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no {SUMMARY}; validate first (omnitune validate).")
    return read_kept(path, Summary)
