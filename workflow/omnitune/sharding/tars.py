"""Random access to tars by path or URL, and the disk cache that a node's processes share for what came from URLs."""

import fcntl
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnitune.io import storage
from omnitune.io.files import create_beside, open_lock

REBUILD = "Rebuild it: snakemake --cores 2 --forcerun shard_dataset index_dataset"
OPEN_TARS = 128  # per process; below the usual limit of 1024 open files, with several workers
REQUESTS = 32  # at once, where the sizes of all tars are asked for
SUBFOLDERS = 32  # of a cache; an eviction looks at one of them only
DIGEST_BYTES = 32
logger = logging.getLogger(__name__)


class DiskCache:
    """Pieces of remote files on the local disk, at most `limit` bytes in all, shared by any number of processes.

    Each of the subfolders is bounded by its share of the limit, and forgets what was not used for longest. An entry
    starts with the SHA-256 of the rest: one that a power cut or a failing disk has spoilt is fetched again.

    Args:
        folder: made where it is missing; holds nothing else.
        limit: in bytes. An entry of more than limit / SUBFOLDERS is not kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = Path(folder)
        self.share = limit // SUBFOLDERS
        self._broken = False

    def get(self, key: str) -> bytes | None:
        """What is kept under a key; None where nothing whole is."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)  # "last used"; a disk's own time of access is often switched off
        except OSError:  # never kept, or evicted at this moment
            return None
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return data if hashlib.sha256(data).digest() == digest else None

    def put(self, key: str, data: bytes) -> None:
        """Keeps bytes under a key; a disk that cannot is reported once, and training goes on without."""
        size = len(data) + DIGEST_BYTES
        if size > self.share or self._broken:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent / ".lock"):
                self._make_room(path.parent, size)
                temporary, handle = create_beside(path)
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                temporary.replace(path)
        except (OSError, ValueError) as error:
            self._broken = True
            logger.warning("%s: the cache cannot be written (%s); this process reads on without it.", path, error)

    def drop(self, key: str) -> None:
        """Forgets what is kept under a key."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / f"{int(name[:8], 16) % SUBFOLDERS:02d}" / name[8:]

    def _make_room(self, folder: Path, size: int) -> None:
        """Evicts until `size` more bytes fit; files are written under the lock, so a .tmp is what a kill has left."""
        with os.scandir(folder) as entries:
            files = [(entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in entries]
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files, key=lambda file: (not file[2].endswith(".tmp"), file)):
            if total + size <= self.share and not path.endswith(".tmp"):
                break
            if not path.endswith(".lock"):
                Path(path).unlink()
                total -= length


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released as the file closes
        yield
    finally:
        os.close(handle)


def _cache_key(url: str, offset: int, size: int, version: str) -> str:
    return f"{url} {offset} {size} {version}"


def _ends_before(url: str, offset: int) -> bool:
    """Whether nothing lies at an offset; services refuse a range there, each with an error of its own."""
    try:
        return storage.size_of(url) <= offset
    except OSError:
        return False


class _Descriptor:
    """An open file that closes itself once nobody reads it any more, which may be after it was forgotten."""

    def __init__(self, place: str) -> None:
        self.number = os.open(place, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class TarReader:
    """Reads pieces of tars, each from its own place.

    May be used by several threads, sent to other processes, and used after a fork.

    Args:
        folder: where tars lie that are given by name, a folder or a URL.
        cache: folder of the disk cache for what is read from URLs.
        cache_bytes: its limit; 0 is no cache.
        fix: the sentence at the end of every error.
    """

    def __init__(self, folder: str | Path, cache: Path | None = None, cache_bytes: int = 0, fix: str = REBUILD) -> None:
        self.folder = str(folder)
        self.fix = fix
        self._arguments = (folder, cache, cache_bytes, fix)
        self._cache = DiskCache(cache, cache_bytes) if cache is not None and cache_bytes else None
        self._files: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TarReader, self._arguments  # open files cannot be sent to another process

    def read(self, tar: str, offset: int, size: int, key: str, version: str = "") -> bytes:
        """Exactly `size` bytes of a tar from `offset` on.

        Args:
            tar: name in the folder, path or URL.
            offset, size: in bytes.
            key: the sample that they belong to, for messages.
            version: what tells this content of the tar from a later one (its SHA-256), so that a cache serves no old
                bytes.

        Raises:
            ValueError: where the tar cannot be read or ends early; names tar, key and offset.
        """
        place = storage.join(self.folder, tar)
        sample = f"sample {key} at byte {offset}"
        remote = storage.is_url(place)
        if min(offset, size) < 0 or "\0" in place:
            raise ValueError(f"{place}: {sample}, of {size} bytes, can be in no tar. {self.fix}.")
        try:
            data = self._remote(place, offset, size, version) if remote else self._local(place, offset, size)
        except OSError as error:
            data = b""
            if not (remote and _ends_before(place, offset)):
                raise ValueError(
                    f"{place}: {sample} cannot be read ({error.strerror or error}). {self._repair(place, error)}."
                ) from None
        if len(data) > size:
            raise ValueError(
                f"{place}: the server gives {len(data)} bytes where {size} are asked for: it serves no ranges."
            )
        if len(data) < size:
            raise ValueError(f"{place}: ends early: {sample} needs {size} bytes, there are {len(data)}. {self.fix}.")
        return data

    def forget(self, tar: str, offset: int, size: int, version: str = "") -> None:
        """Takes what `read` gave out of the cache: it turned out not to be what it should."""
        if self._cache:
            self._cache.drop(_cache_key(storage.join(self.folder, tar), offset, size, version))

    def _local(self, place: str, offset: int, size: int) -> bytes:
        # Not a memory map: one of a tar that is cut off under a running training ends the process by SIGBUS, where a
        # short read can be named. And pread has no position that processes could share, as they do after a fork.
        file = self._file(place)
        size = min(size, os.fstat(file.number).st_size - offset)  # an index may say anything
        data = os.pread(file.number, size, offset) if size > 0 else b""
        while len(data) < size and (more := os.pread(file.number, size - len(data), offset + len(data))):
            data += more  # one call gives at most 2 GB
        return data

    def _remote(self, url: str, offset: int, size: int, version: str) -> bytes:
        key = _cache_key(url, offset, size, version)
        kept = self._cache.get(key) if self._cache else None
        if kept is not None:
            return kept
        data = storage.read_range(url, offset, size)
        if self._cache and len(data) == size:
            self._cache.put(key, data)
        return data

    def _repair(self, place: str, error: OSError) -> str:
        if storage.is_url(place) and not isinstance(error, FileNotFoundError):
            return "Start again once the service answers: training goes on from its checkpoint"
        return self.fix

    def _file(self, place: str) -> _Descriptor:
        """An open tar; those unused for longest are closed beyond OPEN_TARS."""
        with self._lock:
            if place not in self._files:
                self._files[place] = _Descriptor(place)
                if len(self._files) > OPEN_TARS:
                    self._files.popitem(last=False)
            self._files.move_to_end(place)
            return self._files[place]

    def check(self, tars: Mapping[str, int]) -> None:
        """Raises ValueError where a tar (name: bytes) is missing or has another size."""
        places = {storage.join(self.folder, tar): size for tar, size in sorted(tars.items())}
        with ThreadPoolExecutor(REQUESTS) as pool:  # each is a request of its own where they lie at URLs
            for (place, expected), found in zip(places.items(), pool.map(self._size, places), strict=True):
                if found != expected:
                    raise ValueError(f"{place}: has {found} bytes, but {expected} when it was indexed. {self.fix}.")

    def _size(self, place: str) -> int:
        try:
            return storage.size_of(place)
        except FileNotFoundError:
            raise ValueError(f"{place}: is missing. {self.fix}.") from None
        except OSError as error:
            raise ValueError(f"{place}: cannot be looked at ({error.strerror or error}).") from None

    def close(self) -> None:
        """Closes all tars; they are opened again when needed."""
        self._files.clear()
