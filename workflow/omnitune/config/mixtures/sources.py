"""Read mixture files: nested .yml files become a flat list of sources with ratios that sum to one."""

import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from omnitune.config.base import load_config
from omnitune.config.data import DataOptions
from omnitune.config.mixtures.mixture import INSIDE, Mixture, MixtureEntry
from omnitune.config.mixtures.sample_files import PATTERN, SampleFiles, check_pattern, fixed_part
from omnitune.config.yaml_file import line_of
from omnitune.errors import ConfigError, Refused
from omnitune.io.jsonl import count_lines
from omnitune.io.places import check_url, require_below
from omnitune.io.storage import is_url, redact
from omnitune.paths import MAX_NAME_BYTES, is_letter

MIXTURE_SUFFIXES = (".yml", ".yaml")
SAMPLE_SUFFIXES = (".jsonl", ".json")
# What to do about a file of another kind, by its suffix.
REMEDIES = {
    ".gz": " Unpack it: gunzip -k FILE.",
    ".zst": " Unpack it: unzstd FILE.",
    ".csv": " Write its rows as JSON lines: pandas.read_csv(FILE).to_json(NEW, orient='records', lines=True).",
    ".parquet": " Write its rows as JSON lines: pandas.read_parquet(FILE).to_json(NEW, orient='records', lines=True).",
    ".tar": " Samples of a tar are unpacked first, with a .jsonl that names them.",
}
MAX_ENTRIES = 10_000  # of all mixtures together, each counted as often as it is named
MAX_DEPTH = 32  # mixtures that name each other in a row
MAX_SEARCHED = 1000  # folders below a mixture's, for a file that it names by another path


@dataclass(frozen=True)
class Source:
    """One leaf of a nested mixture.

    Attributes:
        name: letters and digits of any script and `_`; unique in the mixture.
        files: .jsonl files in the order in which their lines count, a Path each or, at a URL, a str; several for a
            folder or pattern. They need not exist yet.
        ratio: share of the whole mixture; over all sources the ratios sum to 1.
        type: the kind of samples, for reports only.
        mixture: the mixture file that names the source, for error messages.
    """

    name: str
    files: tuple[Path | str, ...]
    ratio: float
    type: str
    mixture: Path | None = None

    def places(self, file: Path | str) -> list[Path | str]:
        """Where a file of this source was looked for: from the working directory, then beside its mixture."""
        if isinstance(file, str) or file.is_absolute() or self.mixture is None:
            return [file]
        return list(dict.fromkeys([file, self.mixture.parent / file]))

    def missing(self, file: str) -> str:
        """The sentence on a file of this source that is not there."""
        tried = {str(place) for place in self.places(Path(file))}
        line = line_of(self.mixture, lambda value: str(Path(value)) in tried) if self.mixture else None
        where = f"{self.mixture}, line {line}" if line else f"{self.mixture or self.name}"
        looked = "" if tried == {file} else f" Looked for {' and '.join(sorted(tried))}."
        hint = named_elsewhere(Path(file), self.mixture) if self.mixture else ""
        return f"{where}: {file} does not exist.{looked}{hint or ' Check the path.'}"


@dataclass(frozen=True)
class _Leaf:
    """A source before it has its name, which does not depend on where the project lies.

    Attributes:
        written: the path as the mixture has it, beside the mixture where it was found there, or the URL.
        origin: what the name is made from: that without its extension, query or wildcards.
    """

    written: str
    origin: PurePosixPath
    source: Source


def count_rows(files: Iterable[Path | str], name: str, where: str) -> int:
    """Lines of a source's .jsonl files; ConfigError, with `where` it is asked, for one that cannot be counted."""
    count = 0
    for file in files:
        if isinstance(file, str) or not file.is_file():
            problem = "lies at a URL" if isinstance(file, str) else "is not there yet"
            raise ConfigError(f"{where}: the rows of {redact(str(file))} cannot be counted, as it {problem}.")
        count += count_lines(file, name)
    return count


def named_elsewhere(file: Path, mixture: Path) -> str:
    """A sentence on where below the mixture's folder a missing file of this name is; empty without any."""
    entries = islice(os.walk(mixture.parent), MAX_SEARCHED)
    found = [Path(folder) / file.name for folder, _, names in entries if file.name in names]

    def alike(path: Path) -> int:
        """How many of the last parts are the same."""
        pairs = zip(reversed(path.parts), reversed(file.parts), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return f" There is {max(found, key=alike)}: name this one, if it is meant." if found else ""


def sources_of(data: DataOptions) -> list[Source]:
    """The sources of an experiment's mixture, which may lie where its options allow; see `read_mixture`."""
    return read_mixture(data.data_path, data.source_roots)


def read_mixture(path: Path | str, roots: Sequence[str] | None = None) -> list[Source]:
    """Reads a mixture file and everything it names.

    Args:
        path: a .yml mixture; its entries are .jsonl files or URLs of such, folders (searched for *.jsonl), patterns
            (`data/part-*.jsonl`, `**` for all folders below) or further mixtures.
        roots: folders and URLs below which alone what it names may lie, links followed. None: below the working
            directory and the mixture's own folder, and at any URL.

    Returns:
        Sources by name, without those of ratio 0; the same files named twice are one source. In which order the mixture
        names them changes nothing.

    Raises:
        ConfigError: for a missing mixture or folder, a pattern without a match, an unknown extension, ratios that are
            all 0, a circle, more entries than MAX_ENTRIES, or what lies outside the roots.
    """
    path = Path(path)
    if path.suffix not in MIXTURE_SUFFIXES:
        raise ConfigError(f"{path}: a mixture is a .yml file. Name this file as `path` in one.")
    reading = _Reading(None if roots is None else tuple(roots), path)
    reading.descend(path, 1.0, [])
    return sorted(_named(_merged(reading.leaves)), key=lambda source: source.name)


class _Reading:
    """One reading of a mixture and of those that it names.

    Attributes:
        leaves: what has been found.
    """

    def __init__(self, roots: tuple[str, ...] | None, top: Path) -> None:
        self.roots, self.top = roots, top
        self.leaves: list[_Leaf] = []
        self._entries = 0
        self._files = SampleFiles()
        self._allowed: set[Path | str] = set()
        self._mixtures: dict[Path, Mixture] = {}

    def descend(self, path: Path, share: float, above: list[Path]) -> None:
        """Adds the leaves of one mixture file, which has `share` of the whole; `above` are the files that led to it."""
        _refuse_circle(path, above)
        if path not in self._mixtures:
            self._mixtures[path] = load_config(path, Mixture)
        mixture = self._mixtures[path]
        self._entries += len(mixture.data)
        if self._entries > MAX_ENTRIES or len(above) >= MAX_DEPTH:
            raise ConfigError(
                f"{self.top}: names more than {MAX_ENTRIES} entries through its mixtures, or these name each other "
                f"more than {MAX_DEPTH} times in a row; the last one is {path}. Name folders or patterns instead."
            )
        places = [f"{path}: data.{number}.path: {entry.path!r}" for number, entry in enumerate(mixture.data)]
        ratios = [entry.ratio for entry in mixture.data]
        if mixture.ratio_type == INSIDE and sum(map(bool, ratios)) > 1:
            sizes = [
                self._rows(entry, where, path, above) if entry.ratio else 0
                for entry, where in zip(mixture.data, places, strict=True)
            ]
            ratios = [ratio * size for ratio, size in zip(ratios, sizes, strict=True)]
        total = math.fsum(ratios)  # the same to the last bit in any order
        if total <= 0:
            raise ConfigError(
                f"{path}: data: the ratios of all entries are 0, which leaves nothing. Raise one above 0."
            )
        for entry, where, ratio in zip(mixture.data, places, ratios, strict=True):
            if ratio:
                self._add(entry, where, share * (ratio / total), path, above)

    def _rows(self, entry: MixtureEntry, where: str, path: Path, above: list[Path]) -> int:
        """How many rows all sources of an entry have; ConfigError where they cannot be counted now."""
        inner = _Reading(self.roots, self.top)
        inner._add(entry, where, 1.0, path, above)
        files = {file: leaf.source.name for leaf in inner.leaves for file in leaf.source.files}
        return sum(count_rows([file], entry.path, f"{where}: ratio_type {INSIDE}") for file in files)

    def _add(self, entry: MixtureEntry, where: str, ratio: float, path: Path, above: list[Path]) -> None:
        found: Path | str = entry.path if "://" in entry.path else _resolve(entry, path)
        if isinstance(found, Path):
            check_pattern(found, where)
        self._require_allowed(found if isinstance(found, str) else fixed_part(found), where)
        if isinstance(found, Path) and found.suffix in MIXTURE_SUFFIXES and not found.is_dir():
            if not found.is_file():
                hint = named_elsewhere(found, path)
                raise ConfigError(f"{where}: no such mixture file; tried {_tried(entry, path)}.{hint}")
            self.descend(found, ratio, [*above, path])
            return
        found, origin, files = self._sample_files(found, entry, path, where)
        for file in files:
            self._require_allowed(file, where)
        self.leaves.append(_Leaf(str(found), origin, Source("", files, ratio, entry.type, path)))

    def _sample_files(
        self, found: Path | str, entry: MixtureEntry, mixture: Path, where: str
    ) -> tuple[Path | str, PurePosixPath, tuple[Path | str, ...]]:
        """What was found, what of it names a source, and its .jsonl files."""
        if isinstance(found, str):
            place = PurePosixPath(found.partition("?")[0])
            if place.suffix not in SAMPLE_SUFFIXES:
                raise ConfigError(
                    f"{where}: a URL names one .jsonl file; folders, patterns and mixtures are read locally."
                )
            return found, place.with_suffix(""), (found,)
        if found.is_dir():
            files = self._files.in_folder(found, where)
            if not files:
                raise ConfigError(
                    f"{where}: the folder {found} holds no .jsonl file. Put one there or take the entry out."
                )
            return found, PurePosixPath(found), files
        if PATTERN.search(entry.path) and not found.exists():
            # `data/*.jsonl` is named after `data`, and `data/train_*.jsonl` after `train_`.
            found, files = self._matching_files(entry, mixture, where)
            parts = [part for part in found.with_suffix("").parts if part.strip("*?")]
            return found, PurePosixPath(*parts), files
        if found.suffix not in SAMPLE_SUFFIXES:
            raise ConfigError(
                f"{where}: is neither a .jsonl file, a .yml mixture, an existing folder nor a pattern; "
                f"tried {_tried(entry, mixture)}.{REMEDIES.get(found.suffix.lower(), '')}"
            )
        if found.exists() and not found.is_file():
            raise ConfigError(f"{where}: {found} is no regular file but a pipe or a device, which is not read.")
        return found, PurePosixPath(found.with_suffix("")), (found,)

    def _matching_files(self, entry: MixtureEntry, mixture: Path, where: str) -> tuple[Path, tuple[Path, ...]]:
        """Where a pattern matches, from the working directory or beside the mixture, and the .jsonl files there."""
        for folder in (Path(), mixture.parent):
            files = self._files.matching(folder, Path(entry.path), where)
            if files:
                return folder / entry.path, files
        raise ConfigError(f"{where}: no .jsonl file matches; tried {_tried(entry, mixture)}.")

    def _require_allowed(self, place: Path | str, where: str) -> None:
        """Raises ConfigError for a URL that is not read, and for what lies, links followed, outside the roots."""
        if place in self._allowed:
            return
        self._allowed.add(place)
        if isinstance(place, str):
            try:
                check_url(place)
            except Refused as error:
                raise ConfigError(f"{redact(where)}: {error.message}.") from None
            if self.roots is None:
                return
        roots = self.roots if self.roots is not None else (".", str(self.top.parent))
        fix = (
            "If samples may be read from there, name the folder in data.source_root (omnitune validate: --source_root)"
        )
        require_below(place, roots, where, fix)


def _refuse_circle(path: Path, above: list[Path]) -> None:
    if path.resolve() in [file.resolve() for file in above]:
        circle = " -> ".join(str(file) for file in [*above, path])
        raise ConfigError(f"{above[-1]}: mixtures name each other in a circle: {circle}. Take one of the links out.")


def _resolve(entry: MixtureEntry, mixture: Path) -> Path | str:
    """The path from the working directory, or beside the mixture if only there something is; a URL is itself.

    Where nothing is in either place the first one counts: another rule may make the file there.
    """
    if is_url(entry.path):
        return entry.path
    path = Path(entry.path)
    beside = mixture.parent / path
    return beside if not path.exists() and beside.exists() else path


def _tried(entry: MixtureEntry, mixture: Path) -> str:
    places = dict.fromkeys([Path(entry.path).absolute(), (mixture.parent / entry.path).absolute()])
    return " and ".join(str(place) for place in places)


def _order(leaf: _Leaf) -> tuple[Any, ...]:
    """In which order leaves of the same files become one: not that of the mixture, which is to change nothing."""
    return (
        leaf.origin.is_absolute(),
        leaf.written,
        list(map(str, leaf.source.files)),
        leaf.source.type,
        leaf.source.ratio,
    )


def _merged(leaves: list[_Leaf]) -> list[_Leaf]:
    """Leaves of the same files as one, with the sum of their ratios and their types joined by `+`."""
    merged: dict[tuple[Path | str, ...], _Leaf] = {}
    for leaf in sorted(leaves, key=_order):
        identity = tuple(file if isinstance(file, str) else file.resolve() for file in leaf.source.files)
        first = merged.get(identity)
        if first is None:
            merged[identity] = leaf
            continue
        old, new = first.source, leaf.source
        types = old.type if new.type in old.type.split("+") else f"{old.type}+{new.type}"
        merged[identity] = replace(first, source=replace(old, ratio=old.ratio + new.ratio, type=types))
    return list(merged.values())


def _named(leaves: list[_Leaf]) -> list[Source]:
    """Gives each source its stem as name, lengthened by the folders written before it until no two are equal."""
    depths = [1] * len(leaves)
    while True:
        names = [_name(leaf.origin, depth) for leaf, depth in zip(leaves, depths, strict=True)]
        # Compared without case: the names become file names, also on file systems that ignore case.
        counts = Counter(name.casefold() for name in names)
        clashing = [k for k, name in enumerate(names) if counts[name.casefold()] > 1]
        growing = [k for k in clashing if depths[k] < len(_named_parts(leaves[k].origin))]
        if not growing:
            break
        for k in growing:
            depths[k] += 1
    # `a-b.jsonl` beside `a_b.jsonl`, or x.jsonl beside x.json: no folder tells them apart.
    for k in {*clashing, *(k for k, name in enumerate(names) if len(name.encode()) > MAX_NAME_BYTES)}:
        digest = hashlib.sha256(os.fsencode(unicodedata.normalize("NFC", leaves[k].written))).hexdigest()[:8]
        names[k] = f"{_name(leaves[k].origin, 1)[: MAX_NAME_BYTES // 4]}_{digest}"
    return [replace(leaf.source, name=name) for leaf, name in zip(leaves, names, strict=True)]


def _named_parts(origin: PurePosixPath) -> list[str]:
    return [part for part in origin.parts if part not in (origin.anchor, "..")]


def _name(origin: PurePosixPath, depth: int) -> str:
    """The last parts of a path, of letters and digits alone; in one form, as some systems write accents apart."""
    text = unicodedata.normalize("NFC", "_".join(_named_parts(origin)[-depth:]))
    plain = "".join(sign if sign == "_" or is_letter(sign) else "\0" for sign in text)
    return re.sub("\0+", "_", plain).strip("_") or "source"
