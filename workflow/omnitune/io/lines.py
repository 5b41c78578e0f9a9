"""The lines of .jsonl files, one at a time, however long the files or their lines are."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omnitune.errors import ConfigError
from omnitune.io import storage

MAX_LINE_BYTES = 1 << 20  # no sample needs more; a file without line ends must not be read as one line
LINE_START = 2_000  # bytes that are kept of a line that is too long
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line of a source.

    Attributes:
        file: path or URL.
        number: in the file, from 1.
        ordinal: in the source, over all of its files, from 1.
        content: its bytes without line end and outer blanks; of a line that is too long only the start.
        too_long: whether it has more than MAX_LINE_BYTES.
        has_bom: whether the file's byte order mark stood before it.
    """

    file: str
    number: int
    ordinal: int
    content: bytes
    too_long: bool = False
    has_bom: bool = False


@contextmanager
def local_copies(files: Sequence[str | Path], source_name: str, scratch: Path) -> Iterator[list[tuple[str, Path]]]:
    """(name, local path) of each file. Files at URLs are copied to `scratch`: no connection is held open for hours.

    Raises ConfigError where a file cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".lines-") as folder:
        yield [
            (str(file), _copy(str(file), Path(folder) / str(k), source_name) if storage.is_url(file) else Path(file))
            for k, file in enumerate(files)
        ]


def _copy(url: str, path: Path, source_name: str) -> Path:
    try:
        with storage.open_file(url) as remote, path.open("wb") as local:
            shutil.copyfileobj(remote, local, CHUNK)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise _unreadable(url, source_name, error) from None
    except (ValueError, OSError):
        raise
    except Exception as error:  # each service has errors of its own
        raise OSError(f"{url}: {type(error).__name__}: {error}") from None
    return path


def count_lines(file: Path, source_name: str) -> int:
    """Number of lines of a local file; raises ConfigError where it cannot be read."""
    try:
        with file.open("rb") as stream:
            count, last = 0, b"\n"
            while chunk := stream.read(CHUNK):
                count, last = count + chunk.count(b"\n"), chunk[-1:]
            return count + (last != b"\n")
    except OSError as error:
        raise _unreadable(file, source_name, error) from None


def _unreadable(file: str | Path, source_name: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"source {source_name!r}: {file}: cannot be read ({error.strerror or error}). "
        "Check the path in the mixture, or run the rule that writes the file."
    )


def read_lines(files: Sequence[tuple[str, Path]]) -> Iterator[Line]:
    """All lines of a source's files, given as (name, local path). Blank ones are included, as they count for the ordinal."""
    ordinal = 0
    for name, path in files:
        with path.open("rb") as stream:
            number = 0
            while content := stream.readline(MAX_LINE_BYTES + 1):
                number, ordinal = number + 1, ordinal + 1
                too_long = len(content) > MAX_LINE_BYTES and not content.endswith(b"\n")
                if too_long:
                    _skip_line(stream)
                    content = content[:LINE_START]
                has_bom = number == 1 and content.startswith(BOM)
                text = content.removeprefix(BOM) if has_bom else content
                yield Line(name, number, ordinal, text.strip(), too_long, has_bom)


def count_rows(file: Path) -> int:
    """Number of lines of a local file that are not blank."""
    return sum(1 for line in read_lines([(str(file), file)]) if line.content or line.too_long)


def _skip_line(stream: IO[bytes]) -> None:
    """Goes on to the next line without holding the rest of this one."""
    while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
        pass
