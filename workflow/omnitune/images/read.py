"""The bytes of image files, by path or URL; what is wrong with the place itself is a verdict on the image."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnitune.errors import Refused
from omnitune.images.verdicts import ImageRefused
from omnitune.io import storage


def read_bytes(place: str | Path, limit: int | None = None) -> bytes:
    """The content of a file or URL, without what lies beyond limit + 1 bytes.

    Raises:
        ImageRefused: missing, unreachable, is_a_folder, not_a_file or permission_denied.
        OSError, ValueError: for a failing disk, network or service.
    """
    with verdicts_on(place):
        if storage.is_url(place):
            size = 0 if limit is None else min(storage.size_of(place), limit + 1)
            return storage.read_range(str(place), 0, size) if size else storage.read_bytes(place)
        size_of(place)
        with Path(place).open("rb") as file:
            return file.read(-1 if limit is None else limit + 1)


def read_start(place: str | Path, length: int) -> bytes:
    """The first `length` bytes of a file or URL, or all where there are fewer."""
    if storage.is_url(place):
        return storage.read_range(str(place), 0, length)
    with Path(place).open("rb") as file:
        return file.read(length)


def size_of(place: str | Path) -> int:
    """Size in bytes; refuses what is no file, such as a pipe, which would never end."""
    if storage.is_url(place):
        # A service tells no bytes of what is only the start of other names, too; that cannot be read.
        return storage.size_of(place) or len(storage.read_bytes(place))
    facts = Path(place).stat()
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(facts.st_mode):
        raise ImageRefused("not_a_file", f"{place} is a device or pipe, not a file")
    return facts.st_size


@contextmanager
def verdicts_on(place: str | Path) -> Iterator[None]:
    """Turns the errors that speak of the place itself into verdicts; a failing disk or service speaks of no image."""
    try:
        yield
    except IsADirectoryError:
        raise ImageRefused("is_a_folder", f"{place} is a folder, not an image") from None
    except PermissionError:
        raise ImageRefused("permission_denied", f"{place} may not be read by this user") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRefused("missing", f"{place} does not exist") from None
    except Refused:
        raise
    except ValueError as error:  # a NUL byte in the path
        if storage.is_url(place):
            raise
        raise ImageRefused("missing", f"{str(place)!r} cannot be a path: {error}") from None
    except ConnectionError as error:
        raise ImageRefused("unreachable", str(error)) from None
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise ImageRefused("missing", f"{place}: {error.strerror}") from None
        raise
