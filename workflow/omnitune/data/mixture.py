"""Read mixture files: nested .yml files become a flat list of sources with ratios that sum to one."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from omnitune.config import ConfigError, Mixture, MixtureEntry, load_config

MIXTURE_SUFFIXES = (".yml", ".yaml")
SAMPLE_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Source:
    """One leaf of a nested mixture.

    Attributes:
        name: letters, digits and `_`; unique in the mixture.
        files: .jsonl files in the order in which their lines count; several for a folder. They need not exist yet.
        ratio: share of the whole mixture; over all sources the ratios sum to 1.
        type: the kind of samples, for reports only.
        mixture: the mixture file that names the source, for error messages.
    """

    name: str
    files: tuple[Path, ...]
    ratio: float
    type: str
    mixture: Path | None = None

    def places(self, file: Path) -> list[Path]:
        """Where a file of this source was looked for: from the working directory, then beside its mixture."""
        if file.is_absolute() or self.mixture is None:
            return [file]
        return list(dict.fromkeys([file, self.mixture.parent / file]))


def read_mixture(path: Path | str) -> list[Source]:
    """Reads a mixture file and everything it names.

    Args:
        path: a .yml mixture; its entries are .jsonl files, folders (searched for *.jsonl) or further mixtures.

    Returns:
        Sources in the order in which they are named, without those of ratio 0; the same files named twice are one source.

    Raises:
        ConfigError: for a missing mixture or folder, an unknown extension, ratios that are all 0, or a circle.
    """
    leaves, _ = _read(Path(path))
    return _named(_merged(leaves))


def relevant_files(path: Path | str) -> list[Path]:
    """The mixture files (.yml) that `read_mixture` reads, the given one first, each once. Raises ConfigError."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[list[Source], list[Path]]:
    """All leaves of a mixture, still without names, and the mixture files read."""
    if path.suffix not in MIXTURE_SUFFIXES:
        raise ConfigError(f"{path}: a mixture is a .yml file. Name this file as `path` in one.")
    leaves: list[Source] = []
    read: list[Path] = []
    _descend(path, 1.0, [], leaves, read)
    return leaves, list(dict.fromkeys(read))


def _descend(path: Path, share: float, above: list[Path], leaves: list[Source], read: list[Path]) -> None:
    """Adds the leaves of one mixture file, which has `share` of the whole; `above` are the files that lead to it."""
    _refuse_circle(path, above)
    mixture = load_config(path, Mixture)
    read.append(path)
    total = sum(entry.ratio for entry in mixture.data)
    if total <= 0:
        raise ConfigError(f"{path}: data: the ratios of all entries are 0, which leaves nothing. Raise one above 0.")
    for number, entry in enumerate(mixture.data):
        if entry.ratio == 0:
            continue
        where = f"{path}: data.{number}.path: {entry.path!r}"
        ratio = share * (entry.ratio / total)
        found = _resolve(entry, path)
        if found.is_dir():
            leaves.append(Source("", _folder_files(found, where), ratio, entry.type, path))
        elif found.suffix in MIXTURE_SUFFIXES:
            if not found.is_file():
                raise ConfigError(f"{where}: no such mixture file; tried {_tried(entry, path)}.")
            _descend(found, ratio, [*above, path], leaves, read)
        elif found.suffix in SAMPLE_SUFFIXES:
            leaves.append(Source("", (found,), ratio, entry.type, path))
        else:
            raise ConfigError(
                f"{where}: is neither a .jsonl file, a .yml mixture nor an existing folder; tried {_tried(entry, path)}."
            )


def _refuse_circle(path: Path, above: list[Path]) -> None:
    if path.resolve() in [file.resolve() for file in above]:
        circle = " -> ".join(str(file) for file in [*above, path])
        raise ConfigError(f"{above[-1]}: mixtures name each other in a circle: {circle}. Take one of the links out.")


def _resolve(entry: MixtureEntry, mixture: Path) -> Path:
    """The path from the working directory, or beside the mixture if only there something is.

    Where nothing is in either place the first one counts: another rule may make the file there.
    """
    path = Path(entry.path)
    beside = mixture.parent / path
    return beside if not path.exists() and beside.exists() else path


def _tried(entry: MixtureEntry, mixture: Path) -> str:
    places = dict.fromkeys([Path(entry.path).absolute(), (mixture.parent / entry.path).absolute()])
    return " and ".join(str(place) for place in places)


def _folder_files(folder: Path, where: str) -> tuple[Path, ...]:
    files = tuple(sorted((file for file in folder.rglob("*.jsonl") if file.is_file()), key=lambda file: file.parts))
    if not files:
        raise ConfigError(f"{where}: the folder {folder} holds no .jsonl file. Put one there or take the entry out.")
    return files


def _merged(leaves: list[Source]) -> list[Source]:
    """Leaves of the same files as one, with the sum of their ratios and their types joined by `+`."""
    merged: dict[tuple[Path, ...], Source] = {}
    for leaf in leaves:
        identity = tuple(file.resolve() for file in leaf.files)
        first = merged.get(identity)
        if first is None:
            merged[identity] = leaf
            continue
        types = first.type if leaf.type in first.type.split("+") else f"{first.type}+{leaf.type}"
        merged[identity] = replace(first, ratio=first.ratio + leaf.ratio, type=types)
    return list(merged.values())


def _named(leaves: list[Source]) -> list[Source]:
    """Gives each source its stem as name, lengthened by parent folders until no two are equal."""
    origins = [_origin(leaf) for leaf in leaves]
    depths = [1] * len(leaves)
    while True:
        names = [_name(origin, depth) for origin, depth in zip(origins, depths, strict=True)]
        # Compared without case: the names become file names, also on file systems that ignore case.
        counts = Counter(name.lower() for name in names)
        clashing = [k for k, name in enumerate(names) if counts[name.lower()] > 1]
        growing = [k for k in clashing if depths[k] < len(origins[k].parts)]
        if not growing:
            break
        for k in growing:
            depths[k] += 1
    for k in clashing:  # `a-b.jsonl` beside `a_b.jsonl`: no folder tells them apart
        names[k] += "_" + hashlib.sha256(str(origins[k]).encode()).hexdigest()[:8]
    return [replace(leaf, name=name) for leaf, name in zip(leaves, names, strict=True)]


def _origin(leaf: Source) -> Path:
    """What a source is named after: its .jsonl file without extension, or the folder of several files."""
    if len(leaf.files) == 1:
        return leaf.files[0].absolute().with_suffix("")
    parents = [file.absolute().parent for file in leaf.files]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common


def _name(origin: Path, depth: int) -> str:
    parts = [part for part in origin.parts[-depth:] if part != origin.anchor]
    return re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(parts)).strip("_") or "source"
