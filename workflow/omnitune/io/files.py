"""Writing files so that a killed run leaves nothing that looks complete."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Characters that JSON leaves as they are and str.splitlines takes for the end of a line.
LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends without an error.

    What killed processes of this machine have left of the same file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}.*.tmp"):
        if not _is_running(int(leftover.suffixes[-2][1:])):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if os.strerror(errno.ENOSPC) in str(error):  # not every library names the file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def lock(path: Path, message: str) -> IO[str]:
    """Holds a lock file until it is closed; raises ValueError with the message where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(message) from None
    return file


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; equal content gives equal bytes."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def json_line(content: Any) -> str:
    """One line of JSON with the same text in every run: given key order, UTF-8, no spaces to spare."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # halves of character pairs exist in JSON and not in UTF-8
        text = json.dumps(content, separators=(",", ":"))
    return text.translate(LINE_BREAKS) + "\n"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SEAL = "seal"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash over all of it, by which `is_whole` sees whether it was changed since."""
    plain = {name: value for name, value in content.items() if name != SEAL}
    return {**plain, SEAL: hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def is_whole(content: dict[str, Any]) -> bool:
    """Whether sealed content is what it was; without a seal it is not."""
    return content.get(SEAL) == sealed(content)[SEAL]


def portable(path: Path) -> str:
    """The path as given; of one outside the working directory only its last parts, which mean the same elsewhere."""
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-2:])
    return path.as_posix()
