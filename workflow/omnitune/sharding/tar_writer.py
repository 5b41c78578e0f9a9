"""Write WebDataset tars whose bytes depend on their members alone, and say where each member lies."""

import tarfile
from pathlib import Path
from typing import Self

from webdataset import TarWriter


class MemberWriter:
    """Writes a tar by webdataset's TarWriter, one member at a time: a sample's members stay in the order given.

    Nothing of this run goes into the bytes: time 0, no owner, and what is written is bytes already.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False, format="PAX_FORMAT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._writer.close()

    def add(self, key: str, extension: str, content: bytes) -> int:
        """Writes {key}.{extension}; returns where its bytes start in the tar."""
        self._writer.write({"__key__": key, extension: content})
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        offset: int = self._writer.tarstream.offset
        return offset - padded
