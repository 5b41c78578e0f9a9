"""Counts over validated samples: what summary.json says of a source, the sum over sources, and both for a terminal."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from omnitune.validation.sample import ValidatedSample

# Upper ends of the histograms' classes. Sizes in pixels (width x height); a side of n stands for n x n pixels.
SIZE_SIDES = (256, 512, 768, 1024, 1536, 2048)
ASPECTS = ((1, 2), (2, 3), (4, 5), (5, 4), (3, 2), (2, 1))
TOKENS = (16, 32, 64, 128, 256, 512, 1024)
COUNTED = (
    "reasons",
    "task_types",
    "formats",
    "output_sizes",
    "output_aspects",
    "input_sizes",
    "input_aspects",
    "text_lengths",
    "scripts",
    "notes",
)
TOTALS = ("rows", "accepted", "rejected", "blank_lines", "images", "image_bytes", "image_pixels", "text_tokens")
MAX_LABELS = 500  # of one kind of counts: what else turns up is counted together, as data can bring endless labels
OTHER = "(other)"
SCRIPT_CHARACTERS = 400  # of an instruction that are looked at


def size_class(width: int, height: int) -> str:
    """The class of a size, for example "to 512x512"."""
    for side in SIZE_SIDES:
        if width * height <= side * side:
            return f"to {side}x{side}"
    return f"above {SIZE_SIDES[-1]}x{SIZE_SIDES[-1]}"


def aspect_class(width: int, height: int) -> str:
    """The class of a ratio of width to height, for example "4:5 to 5:4"."""
    below: tuple[int, int] | None = None
    for across, down in ASPECTS:
        if width * down < height * across:
            return f"{below[0]}:{below[1]} to {across}:{down}" if below else f"below {across}:{down}"
        below = (across, down)
    return f"from {ASPECTS[-1][0]}:{ASPECTS[-1][1]}"


def length_class(tokens: int) -> str:
    """The class of a number of tokens, for example "to 64"."""
    return next((f"to {end}" for end in TOKENS if tokens <= end), f"above {TOKENS[-1]}")


SIZE_CLASSES = [f"to {side}x{side}" for side in SIZE_SIDES] + [f"above {SIZE_SIDES[-1]}x{SIZE_SIDES[-1]}"]
ASPECT_CLASSES = list(dict.fromkeys(aspect_class(k, 100) for k in range(1, 1000)))
LENGTH_CLASSES = [f"to {end}" for end in TOKENS] + [f"above {TOKENS[-1]}"]
CLASSES = {
    "output_sizes": SIZE_CLASSES,
    "output_aspects": ASPECT_CLASSES,
    "input_sizes": SIZE_CLASSES,
    "input_aspects": ASPECT_CLASSES,
    "text_lengths": LENGTH_CLASSES,
}


def script_of(text: str) -> str:
    """The script that most letters of a text are in, as Unicode names it: Latin, Cjk, Cyrillic; "none" without letters.

    It stands for the language where that is cheap: it tells Chinese from English, and not English from French.
    """
    start = text[:SCRIPT_CHARACTERS]
    if start.isascii():
        return "Latin" if any(map(str.isalpha, start)) else "none"
    counts = Counter(script for script in map(_script, start) if script)
    return max(counts, key=lambda script: (counts[script], script)) if counts else "none"


@lru_cache(maxsize=20_000)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0].capitalize() if character.isalpha() else ""


class Outputs:
    """The output images of a data set by the first 64 bits of their SHA-256, which tell millions apart."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._complete = True

    def add(self, sha256: str | None) -> None:
        """Remembers the next image; None where it was not hashed."""
        self._complete &= sha256 is not None
        self._hashes.append(int(sha256[:16], 16) if sha256 else 0)

    def repeated(self) -> npt.NDArray[np.bool_] | None:
        """For each image whether it has the bytes of an earlier one; None where not all were hashed."""
        if not self._complete:
            return None
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        result = np.ones(len(hashes), dtype=np.bool_)
        result[np.unique(hashes, return_index=True)[1]] = False
        return result


class Tally:
    """Counts what summary.json holds."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        self.max_input_images = 0
        self.outputs = Outputs()

    def add_accepted(self, sample: ValidatedSample) -> None:
        """Counts an accepted sample."""
        sizes = list(zip(sample.widths, sample.heights, strict=True))
        pixels = sum(width * height for width, height in sizes)
        self.totals.update(rows=1, accepted=1, images=len(sizes), image_bytes=sum(sample.bytes), image_pixels=pixels)
        self._count("task_types", [sample.task_type])
        self._count("formats", sample.formats)
        self._count("notes", sample.notes)
        self._count("scripts", [script_of(sample.instruction)])
        for kind, some in (("input", sizes[:-1]), ("output", sizes[-1:])):
            self._count(f"{kind}_sizes", [size_class(*size) for size in some])
            self._count(f"{kind}_aspects", [aspect_class(*size) for size in some])
        if sample.text_tokens is not None:
            self.totals["text_tokens"] += sample.text_tokens
            self._count("text_lengths", [length_class(sample.text_tokens)])
        self.max_input_images = max(self.max_input_images, len(sample.input_images))
        self.outputs.add(sample.sha256[-1])

    def add_rejected(self, reason: str, count: int = 1) -> None:
        """Counts rejected rows."""
        self.totals.update(rows=count, rejected=count)
        self._count("reasons", [reason], count)

    def add_summary(self, summary: Mapping[str, Any]) -> None:
        """Adds what a source's summary counts; its output images are added one by one, to `outputs`."""
        self.totals.update({name: summary[name] or 0 for name in TOTALS})
        for name in COUNTED:
            for label, count in summary[name].items():
                self._count(name, [label], count)
        self.max_input_images = max(self.max_input_images, summary["max_input_images"])

    def _count(self, name: str, labels: Iterable[str], amount: int = 1) -> None:
        counter = self.counts[name]
        for label in labels:
            known = label in counter or len(counter) < MAX_LABELS
            counter[label if known else OTHER] += amount

    def summary(self, duplicates: int | None) -> dict[str, Any]:
        """The counts as plain values, every histogram in the order of its classes and the rest by frequency.

        Args:
            duplicates: output images that have the bytes of an earlier row's; None where images were not hashed.
        """
        result: dict[str, Any] = {name: self.totals[name] for name in TOTALS}
        if sum(self.counts["text_lengths"].values()) < self.totals["accepted"]:
            result["text_tokens"] = None
        result["max_input_images"] = self.max_input_images
        result["duplicate_output_images"] = duplicates
        for name, counter in self.counts.items():
            if name in CLASSES:
                result[name] = {label: counter[label] for label in CLASSES[name]}
            else:
                result[name] = dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
        return result


TITLES = {
    "reasons": "Rejected rows by reason",
    "task_types": "Task types",
    "output_sizes": "Output images by pixels",
    "output_aspects": "Output images by width : height",
    "input_sizes": "Input images by pixels",
    "input_aspects": "Input images by width : height",
    "text_lengths": "Instructions by tokens of the whole chat",
    "scripts": "Instructions by script of their letters",
    "formats": "Image formats",
    "notes": "Notes on accepted samples",
}
SHOWN_LABELS = 20


def whole_of(name: str, summary: Mapping[str, Any]) -> int:
    """What the shares of one kind of counts are of: all counts, but of notes samples, with none or several."""
    return int(summary["accepted"]) if name == "notes" else sum(summary[name].values())


def summary_tables(summary: Mapping[str, Any]) -> list[Table]:
    """A merged summary for a terminal: totals, sources, and every kind of counts that has any."""
    tables = [_totals_table(summary), _sources_table(summary["sources"])]
    for name, title in TITLES.items():
        counts = {label: count for label, count in summary[name].items() if count}
        if not counts:
            continue
        table = Table("", "count", "share", title=title, title_justify="left", min_width=40)
        whole = whole_of(name, summary)
        for label, count in islice(counts.items(), SHOWN_LABELS):
            table.add_row(label, f"{count:,}", f"{count / whole:.1%}")
        if len(counts) > SHOWN_LABELS:
            table.add_row(f"{len(counts) - SHOWN_LABELS} more in summary.json", "", "")
        tables.append(table)
    return tables


def _totals_table(summary: Mapping[str, Any]) -> Table:
    table = Table("", "", title=f"Validation at depth {summary['depth']}", title_justify="left", show_header=False)
    duplicates, tokens = summary["duplicate_output_images"], summary["text_tokens"]
    rows = {name: f"{summary[name]:,}" for name in ("rows", "accepted")}
    rows["rejected"] = f"{summary['rejected']:,} ({summary['rejected'] / max(summary['rows'], 1):.2%})"
    rows["blank lines"] = f"{summary['blank_lines']:,}"
    rows["images"] = f"{summary['images']:,}"
    rows["pixels"] = f"{summary['image_pixels'] / 1e6:,.1f} million"
    rows["bytes of images"] = f"{summary['image_bytes'] / 1e6:,.1f} million"
    rows["text tokens"] = "not counted" if tokens is None else f"{tokens:,}"
    rows["repeated output images"] = "not known without hashes" if duplicates is None else f"{duplicates:,}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _sources_table(sources: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("source", "rows", "accepted", "rejected", "reasons", title="Sources", title_justify="left")
    for name, counts in sources.items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["reasons"].items())
        table.add_row(name, *(f"{counts[key]:,}" for key in ("rows", "accepted", "rejected")), reasons)
    return table
