"""Files by local path or by URL: s3://, gs://, hf://, https:// and whatever else fsspec reads.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, HF_TOKEN, ..), as each service's own
library reads them; none is taken from a config or written anywhere.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any
from urllib.parse import unquote

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import Callback

from omnitune.errors import Refused
from omnitune.io.files import atomic_path
from omnitune.io.url_limits import Budget, budget

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
# Parts of a URL that let whoever reads it in: a user's name and password, and what signs it or is a key of its own.
USER = re.compile(r"(?<=://)[^/?#\s\"]*@")  # up to the last one, as a password may hold others
QUERY = re.compile(r"(?<=[?&;#])([^?&;#=\s\"']+)=[^&;#\s\"']*")
SECRETS = {
    "auth",
    "authorization",
    "awsaccesskeyid",
    "code",
    "googleaccessid",
    "hmac",
    "key",
    "keypairid",
    "policy",
    "sig",
}
SECRET_ENDS = ("accesskey", "apikey", "authkey", "credential", "jwt", "passwd", "password", "secret", "secretkey",
               "signature", "subscriptionkey", "token")  # fmt: skip
HTTP = {"http", "https"}
OWN_SECONDS = 300  # for an answer over HTTP where no limits are in force
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL; `file://` is none, it is refused wherever it is opened."""
    return URL.match(str(path)) is not None


def redact(text: str) -> str:
    """The text without the credentials that stand in its URLs."""
    return QUERY.sub(lambda found: "" if _is_secret(found[1]) else found[0], USER.sub("", text))


def _is_secret(name: str) -> bool:
    """Whether a parameter of a URL lets in, by its name as a server reads it: decoded, in any case."""
    plain = re.sub(r"[^a-z0-9]", "", unquote(name).casefold())
    return plain in SECRETS or plain.endswith(SECRET_ENDS)


def join(folder: str | Path, name: str) -> str:
    """The place of `name` in a folder or below a URL; an absolute name or a URL stays what it is."""
    if is_url(name):
        return name
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)  # noqa: PTH118


def parent(path: str | Path) -> str:
    """The folder that a file lies in, or the URL above it."""
    return str(path).rpartition("/")[0] if is_url(path) else str(Path(path).parent)


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in HTTP


@dataclass(frozen=True)
class _Remote:
    """A file at a URL, read under the limits that are in force.

    Attributes:
        url: as it was given.
        filesystem, path: what reads it, and its path in there.
        left: of the limits; None where there are none.
    """

    url: str
    filesystem: Any
    path: str
    left: Budget | None

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._ask(self.filesystem.info, self.path)
        return facts

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from start up to end, or all; fewer where the file ends before."""
        if self.left is not None:
            if end is None and _is_http(self.url):  # which may tell no size, or a wrong one
                end = self.left.bytes() + 1
            else:
                self.left.check(self.facts()["size"] if end is None else end - start, self.url)
        part = {} if end is None else {"start": start, "end": end}  # there are services that give no part of nothing
        content: bytes = self._ask(self.filesystem.cat_file, self.path, **part)
        if self.left is not None:
            self.left.add(len(content), self.url)
        return content

    def copy(self, path: Path) -> None:
        self._ask(self.filesystem.get_file, self.path, str(path), callback=_Counter(self))

    def _ask(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The answer to a request; TimeoutError where it takes longer than the limits allow."""
        seconds: float | None = OWN_SECONDS if _is_http(self.url) else None
        if self.left is not None:
            seconds = self.left.seconds(self.url)
        if seconds is None:
            return request(*arguments, **options)
        if isinstance(self.filesystem, AsyncFileSystem):
            return request(*arguments, **options, timeout=seconds)
        return in_time(seconds, partial(request, *arguments, **options))


class _Counter(Callback):
    """Counts what is copied against the limits."""

    def __init__(self, remote: _Remote) -> None:
        super().__init__()
        self.remote = remote

    def relative_update(self, inc: int = 1) -> None:
        if self.remote.left is not None:
            self.remote.left.seconds(self.remote.url)  # nobody waits any more for what takes longer
            self.remote.left.add(inc, self.remote.url)


def in_time(seconds: float, request: Callable[[], Any]) -> Any:
    """What a request of a library without time limits gives; TimeoutError after that, and it is left to itself."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        try:
            answers.put((request(), None))
        except BaseException as error:  # raised again by whoever waits
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer


def open_file(path: str | Path) -> IO[bytes]:
    """Opens a file or URL for reading; raises OSError, and ValueError where the service cannot be used at all."""
    if not is_url(path):
        return Path(path).open("rb")
    with _service(str(path)) as remote:
        opened: IO[bytes] = remote.filesystem.open(remote.path, "rb")
        return opened


def copy(url: str, path: Path) -> None:
    """Copies a URL to a local file; raises as `open_file` does."""
    with _service(url) as remote:
        remote.copy(path)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file or URL; raises as `open_file` does."""
    if not is_url(path):
        return Path(path).read_bytes()
    with _service(str(path)) as remote:
        return remote.read()


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a URL from `offset` on, by one range request; fewer if it ends within, OSError if before."""
    with _service(url) as remote:
        return remote.read(offset, offset + size)


def size_of(path: str | Path) -> int:
    """Size in bytes of a file or URL; raises as `open_file` does."""
    if not is_url(path):
        return Path(path).stat().st_size
    with _service(str(path)) as remote:
        size = remote.facts()["size"]
        return len(remote.read()) if size is None else int(size)  # a server may not tell


def version_of(url: str) -> str:
    """What tells one content of a URL from another without reading it: its ETag, or else size and time of change."""
    with _service(url) as remote:
        facts = remote.facts()
    known = {name.lower(): value for name, value in facts.items()}
    names = ("size", "lastmodified", "last-modified", "mtime", "updated", "content-md5", "blob_id", "lfs")
    return str(known.get("etag") or [str(known.get(name)) for name in names])


@contextmanager
def atomic_file(path: str | Path, scratch: Path | None = None) -> Iterator[Path]:
    """A local temporary path, which becomes `path` when the block ends without an error.

    Args:
        path: a file, renamed into place, or a URL, uploaded to; object stores show an object only once it is whole.
        scratch: local folder for what is uploaded; the system's temporary folder by default.
    """
    if not is_url(path):
        with atomic_path(Path(path)) as temporary:
            yield temporary
        return
    import tempfile

    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="omnitune-") as folder:
        temporary = Path(folder) / str(path).rpartition("/")[2]
        yield temporary
        with _service(str(path)) as remote:
            remote.filesystem.put_file(str(temporary), remote.path)


@contextmanager
def _service(url: str) -> Iterator[_Remote]:
    """What reads a URL; errors name the URL, and faults of the set-up say what to do.

    Raises:
        Refused: too_many_bytes, too_slow, private_address or outside_image_root, where limits are in force.
        OSError, ValueError: over HTTP a ConnectionError for all that is neither missing nor forbidden.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in {"file", "local"}:
        raise ValueError(f"{url}: write a local file as a plain path.")
    if redact(url) != url:
        raise ValueError(f"{redact(url)}: stands with credentials; put them into the environment instead.")
    left = budget()
    try:
        yield _Remote(url, *_filesystem(url, left), left)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        fix = f'pip install "omnitune[{extra}]"' if extra else f"install what reads {scheme}:// ({error})"
        raise ValueError(f"{url}: {scheme}:// needs a further package: {fix}.") from None
    except Exception as error:  # each service has errors of its own
        if isinstance(error, TimeoutError) and left is not None:
            raise left.too_slow(url) from None
        raise _translated(error, url) from None


def _filesystem(url: str, left: Budget | None) -> tuple[Any, str]:
    if not _is_http(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem, path
    from omnitune.io.http import GuardedHTTP  # its package is optional

    return (GuardedHTTP() if left is None else GuardedHTTP(left.limits.private_networks, left.roots)), url


def _translated(error: Exception, url: str) -> Exception:
    """What an error of a service means, with the URL in it."""
    cause: Any = error
    if _is_http(url) and isinstance(error, FileNotFoundError) and error.__cause__:
        cause = error.__cause__  # whatever keeps a size from being known comes as this error
    refused, status = getattr(cause, "os_error", cause), getattr(cause, "status", None)
    if isinstance(refused, Refused):
        message = refused.message if url in refused.message else f"{url} {redact(refused.message)}"
        return Refused(refused.reason, message)
    text = redact(str(cause)) or type(cause).__name__
    if status in {404, 410} or isinstance(cause, FileNotFoundError):
        return FileNotFoundError(f"{url}: not found ({text})")
    if status in {401, 403}:
        return PermissionError(f"{url}: {text}")
    if isinstance(cause, PermissionError | IsADirectoryError):
        return type(cause)(f"{url}: {text}")
    if _is_http(url):
        return ConnectionError(f"{url}: {text}")
    return _fault_of_service(cause, url, text)


def _fault_of_service(error: Exception, url: str, text: str) -> Exception:
    """What says nothing about a file: a service that fails, or is not set up."""
    if isinstance(error, ValueError):
        return ValueError(f"{url}: cannot be opened: {text}")
    if "Credentials" in type(error).__name__:
        return ValueError(
            f"{url}: no credentials were found. Put them into the environment, as the service's own tools read them "
            "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
        )
    if getattr(error, "status", None):
        return ConnectionError(f"{url}: {type(error).__name__}: {text}")
    return OSError(f"{url}: {text}" if isinstance(error, OSError) else f"{url}: {type(error).__name__}: {text}")
