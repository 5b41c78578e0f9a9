"""Writing files so that a killed run leaves nothing that looks complete."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

# Characters that JSON leaves as they are and str.splitlines takes for the end of a line.
LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


CACHED_BYTES = 1 << 20  # smaller files are hashed each time: some file systems count times in steps
_digests: dict[tuple[int, ...], str] = {}


@lru_cache(maxsize=1)
def _machine() -> str:
    """Tells apart the process numbers of machines of one name, of containers, and of what ran before a restart."""
    facts = [platform.node()]
    with suppress(OSError):  # there on Linux alone
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody can guess."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def create_beside(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, of a name that nobody can guess and the umask's mode: its path and its handle."""
    temporary = _temporary_name(path)
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _remove_leftovers(path: Path) -> None:
    """Removes what killed processes of this machine have left of the same file or folder."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}\.(\d{{1,10}})\.[0-9a-f]{{16}}\.tmp")
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            remove_tree(entry)


def remove_tree(path: Path) -> None:
    """Removes a folder with all that is in it, a file, or a link but not what it leads to; nothing if it is missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, which takes its name when the block ends without an error.

    Its mode is that of the umask, whatever a library makes of it. What killed processes of this machine have left of
    the same file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary, handle = create_beside(path)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if os.strerror(errno.ENOSPC) in str(error):  # not every library names the file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder beside `path`, which takes its place when the block ends without an error.

    One process at a time writes a folder: raises ValueError where another does. Files in it get the mode of the umask,
    but for those that lie elsewhere, too.
    Of the working directory, which processes stand in, the content is exchanged.
    """
    path = Path(path)
    if path.name in {"", ".."}:
        path = Path(os.path.abspath(path))  # noqa: PTH100  (takes `..` as it is written)
    with lock_folder(path):
        _remove_leftovers(path)
        temporary = _temporary_name(path)
        temporary.mkdir()
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                    file.chmod(mode)
            if path == Path.cwd():
                _exchange_content(temporary, path)
                return
            old = _temporary_name(path)
            if path.exists() or path.is_symlink():
                path.rename(old)
            temporary.rename(path)
            remove_tree(old)
        finally:
            remove_tree(temporary)


def _exchange_content(new: Path, folder: Path) -> None:
    """Puts the entries of a folder into the working directory, which must stay the same; the last written last."""
    for entry in folder.iterdir():
        remove_tree(entry)
    for entry in sorted(new.iterdir(), key=lambda entry: entry.stat().st_mtime_ns):
        entry.rename(folder / entry.name)


@contextmanager
def place_beside(path: Path) -> Iterator[Path]:
    """A name beside `path` for the block to make a file or a link at, which then takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # also where both were links to one file, which are not renamed


def share(source: Path, target: Path, by_name: bool = True) -> None:
    """Gives a file a second place that takes no space: a hard link, else a symbolic one, else a copy.

    It stays one file: what is written into either place stands in both. Without `by_name` there is no symbolic link:
    the target stays where the source is removed.
    """
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or somebody else's file
        try:
            if not by_name:
                raise
            target.symlink_to(source)
        except OSError:
            shutil.copy2(source, target)


class Lock:
    """A lock that is held, until it is closed, nobody has it any more, or its process ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._file = path, os.fdopen(handle, "r+b", buffering=0)  # closes itself where nobody has it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, remove: bool = True) -> None:
        """Frees the lock, and removes the file, but where somebody else may hold it, too."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()


class Held(ValueError):  # noqa: N818  (a state, beside Lock)
    """Another process holds a lock."""


def lock(path: Path, message: str) -> Lock:
    """Holds a lock file until it is closed. What is in the file stays; a link in its place is not followed.

    Raises Held with the message where another process holds it, and ValueError with a reason where it cannot be locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = open_lock(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, handle):
                return Lock(path, handle)
            os.close(handle)  # whoever held it has removed it in this moment
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise Held(message) from None
            raise ValueError(f"{path}: cannot be locked ({error.strerror}).") from None


def _is_there(path: Path, handle: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False


def lock_folder(folder: Path) -> Lock:
    """Takes a folder for this process to write, by a lock beside it; ValueError where another process writes it."""
    beside = Path(folder).absolute()  # also of the working directory
    return lock(
        beside.with_name(f".{beside.name}.lock"), f"{folder}: another process is writing here. Wait for it or stop it."
    )


def open_lock(path: Path) -> int:
    """Opens a file to lock, made where it is missing; ValueError where something else than a plain file lies there."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EROFS):
            raise ValueError(f"{path.parent}: cannot be written to ({error.strerror}). Name another folder.") from None
        problem = (
            "is a link, which no lock is" if error.errno == errno.ELOOP else f"cannot be opened ({error.strerror})"
        )
        raise ValueError(f"{path}: {problem}. Remove it.") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path}: is no plain file, which a lock is. Remove it.")
    return handle


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def is_plain_file(path: Path) -> bool:
    """Whether there is a plain file; no, also for a name that no file can have, of which the method of Path raises."""
    return os.path.isfile(path)  # noqa: PTH113


def open_regular(path: Path) -> BufferedReader:
    """Opens a plain file for reading; raises OSError for anything else: a pipe or a device would hold a reader up
    without end, also where one is put in the place of a file that was looked at before."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, "a path holds no NUL byte", str(path)) from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


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
    """SHA-256 of a file's bytes, in hexadecimal; read once in a process while it is the same file of the same times.

    The time of the last change of a file's state is among these, which nobody can set back.
    """
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if found.st_size < CACHED_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        if version not in _digests:
            _digests[version] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[version]


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
