"""Which .jsonl files a folder or a pattern of a mixture stands for, however many folders lie there."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from pathlib import Path

from omnitune.errors import ConfigError, shown

PATTERN = re.compile(r"[*?\[]")
ANY_FOLDER = "**"
MAX_FILES = 100_000  # .jsonl files of one folder or pattern
MAX_LEVELS = 100  # of folders in a row that a folder or pattern leads through
MAX_WALKED = 1_000_000  # files and folders that are looked at for a mixture and all that it names
NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def fixed_part(found: Path) -> Path:
    """The part of a path before its first wildcard; all of one that is there, or has none."""
    if found.exists():
        return found
    return Path(*takewhile(lambda part: not PATTERN.search(part), found.parts))


def check_pattern(found: Path, where: str) -> None:
    """Raises ConfigError for a pattern that leads back out of folders, or to the same files on many ways."""
    wild = found.parts[len(fixed_part(found).parts) :]
    if ".." in wild:
        raise ConfigError(f"{where}: `..` stands behind a wildcard. Write the folder out.")
    if len(wild) > MAX_LEVELS:
        raise ConfigError(f"{where}: has more than {MAX_LEVELS} parts behind its first wildcard. Write folders out.")
    if wild.count(ANY_FOLDER) > 1:
        raise ConfigError(f"{where}: `**` stands more than once, which means no more files. Keep one.")


class SampleFiles:
    """Looks for .jsonl files in folders; those of one reading of a mixture share a limit."""

    def __init__(self) -> None:
        self._walked = 0

    def in_folder(self, folder: Path, where: str) -> tuple[Path, ...]:
        """All below a folder but for hidden ones, as file browsers leave; linked folders are not entered."""
        return self._sorted(self._below(folder, (ANY_FOLDER, "*"), where, follow=False), where)

    def matching(self, folder: Path, pattern: Path, where: str) -> tuple[Path, ...]:
        """What matches a pattern in a folder, as in a shell: hidden names must be written out, links are followed."""
        parts = (*pattern.parts, "*") if pattern.name == ANY_FOLDER else pattern.parts
        return self._sorted(self._below(folder, parts, where, follow=True), where)

    def _sorted(self, found: Iterable[Path], where: str) -> tuple[Path, ...]:
        samples = (file for file in found if file.suffix == ".jsonl" and file.is_file())
        files = tuple(sorted(islice(samples, MAX_FILES + 1), key=lambda file: file.parts))
        if len(files) > MAX_FILES:
            raise ConfigError(f"{where}: more than {MAX_FILES} .jsonl files. Join them, or name several entries.")
        return files

    def _below(
        self, place: Path, parts: Sequence[str], where: str, follow: bool, above: tuple[os.stat_result, ...] = ()
    ) -> Iterator[Path]:
        """What the parts of a pattern lead to from a folder; `above` are the folders that `**` has gone through."""
        if not parts:
            yield place
            return
        first, rest = parts[0], parts[1:]
        if not PATTERN.search(first):
            yield from self._below(place / first, rest, where, follow)
            return
        entries = self._entries(place, where)
        if first != ANY_FOLDER:
            for entry in entries:
                if fnmatchcase(entry.name, first) and (first.startswith(".") or not entry.name.startswith(".")):
                    yield from self._below(place / entry.name, rest, where, follow)
            return
        yield from self._below(place, rest, where, follow)
        if len(above) > MAX_LEVELS:
            raise ConfigError(
                f"{where}: {shown(str(place))} lies more than {MAX_LEVELS} folders deep. Name a nearer one."
            )
        here = (*above, place.stat()) if entries else above
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry, here, follow):
                yield from self._below(place / entry.name, parts, where, follow, here)

    def _entries(self, folder: Path, where: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                entries = list(islice(found, MAX_WALKED + 1 - self._walked))
        except OSError as error:
            if error.errno in NOTHING_THERE:
                return []
            raise ConfigError(f"{where}: {folder}: cannot be looked into ({error.strerror}).") from None
        self._walked += len(entries)
        if self._walked > MAX_WALKED:
            raise ConfigError(
                f"{where}: more than {MAX_WALKED} files and folders lie where samples are looked for. Name the folders "
                "that hold them."
            )
        return entries


def _is_folder(entry: os.DirEntry[str], above: Sequence[os.stat_result], follow: bool) -> bool:
    """Whether `**` goes into an entry: not by a link that leads nowhere, or endlessly to a folder above."""
    try:
        if not entry.is_dir(follow_symlinks=follow):
            return False
        return not (entry.is_symlink() and any(os.path.samestat(entry.stat(), folder) for folder in above))
    except OSError:  # a link to itself, or into a folder that nobody may look into
        return False
