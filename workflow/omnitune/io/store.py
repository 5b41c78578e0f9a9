"""Results that projects share: files in a folder, by a hash of all that they are a function of."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from omnitune.errors import ConfigError
from omnitune.io.files import Held, atomic_folder, place_beside, sha256_of, share, write_json
from omnitune.io.json_object import read_json

ENTRY_FILE = "entry.json"  # in an entry: SHA-256 of its files
LARGE = ".tar"  # stays one file in all projects; others are copied, as Snakemake goes by the age of some

logger = logging.getLogger("omnitune")


def store_key(facts: Mapping[str, Any]) -> str:
    """The name of what is a function of these facts, which JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """A folder that projects share. It only saves work: what is wrong with it is said in the log and stops nothing.

    Attributes:
        folder: holds {first two digits}/{key}/ with the files of an entry and their hashes.
    """

    folder: Path

    @classmethod
    def of(cls, folder: str | None) -> Self | None:
        """That of the config's key; None without one."""
        return cls(Path(folder)) if folder else None

    def require(self) -> None:
        """Raises ConfigError where there is no such folder, or none that can be written to."""
        if not self.folder.is_dir():
            raise ConfigError(f"store: {self.folder} does not exist. mkdir -p {self.folder}, or leave the key out.")
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise ConfigError(f"store: {self.folder} cannot be written to. Change its mode, or leave the key out.")

    def take(self, key: str, files: Sequence[Path]) -> bool:
        """Brings the files of an entry to their places, in order; False where there is no entry, or none that is whole.

        Args:
            key: of `store_key`.
            files: where they belong; in the entry they have the same names.
        """
        entry = self._entry(key)
        try:
            if not (entry / ENTRY_FILE).is_file():
                return False
            hashes = read_json(entry / ENTRY_FILE)
            damaged = [path.name for path in files if sha256_of(entry / path.name) != hashes.get(path.name)]
            if damaged:
                logger.warning("%s: %s is not what was put there; it is made again", entry, ", ".join(damaged))
                return False
            for path in files:
                with place_beside(path) as temporary:
                    (share if path.suffix == LARGE else shutil.copyfile)(entry / path.name, temporary)
        except (OSError, ValueError) as error:
            logger.warning("%s: cannot be taken (%s); it is made again", entry, error)
            return False
        logger.info("taken from %s: %s", self.folder, ", ".join(path.name for path in files))
        return True

    def put(self, key: str, files: Sequence[Path]) -> None:
        """Adds an entry, or replaces it; of equal entries that several processes put at once, one stays."""
        try:
            with atomic_folder(self._entry(key)) as temporary:
                for path in files:
                    if path.suffix == LARGE:
                        share(path, temporary / path.name, by_name=False)
                    else:
                        shutil.copyfile(path, temporary / path.name)
                write_json(temporary / ENTRY_FILE, {path.name: sha256_of(path) for path in files})
        except Held:
            logger.info("%s: another process puts the same there", self.folder)
        except (OSError, ValueError) as error:
            logger.warning("%s: nothing was put there (%s)", self.folder, error)

    def _entry(self, key: str) -> Path:
        return self.folder / key[:2] / key
