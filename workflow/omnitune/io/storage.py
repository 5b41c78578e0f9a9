"""Files by local path or by URL: s3://, gs://, hf://, https:// and whatever else fsspec reads.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, HF_TOKEN, ..), as each service's own
library reads them; none is taken from a config or written anywhere.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

from omnitune.io.files import atomic_path

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
# Parts of a URL that let whoever reads it in: a user's name and password, and what signs it or is a key of its own.
SECRETS = (
    r"X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|Policy|Key-Pair-Id|sig|"
    r"(?:[a-z0-9]+[-_])*(?:api[-_]?key|token|secret|password)"
)
CREDENTIALS = re.compile(rf"(?<=://)[^/@\s\"]*@|(?<=[?&;])(?i:{SECRETS})=[^&;\s\"']*", re.IGNORECASE)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL; `file://` is none, it is refused wherever it is opened."""
    return URL.match(str(path)) is not None


def redact(text: str) -> str:
    """The text without the credentials that stand in its URLs."""
    return CREDENTIALS.sub("", text)


def join(folder: str | Path, name: str) -> str:
    """The place of `name` in a folder or below a URL; an absolute name or a URL stays what it is."""
    if is_url(name):
        return name
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)  # noqa: PTH118


def parent(path: str | Path) -> str:
    """The folder that a file lies in, or the URL above it."""
    return str(path).rpartition("/")[0] if is_url(path) else str(Path(path).parent)


def open_file(path: str | Path) -> IO[bytes]:
    """Opens a file or URL for reading; raises OSError, and ValueError where the service cannot be used at all."""
    if not is_url(path):
        return Path(path).open("rb")
    with _service(str(path)) as (filesystem, inner):
        opened: IO[bytes] = filesystem.open(inner, "rb")
        return opened


def read_bytes(path: str | Path) -> bytes:
    """The content of a file or URL; raises as `open_file` does."""
    if not is_url(path):
        return Path(path).read_bytes()
    with _service(str(path)) as (filesystem, inner):
        content: bytes = filesystem.cat_file(inner)
        return content


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a URL from `offset` on, by one range request; fewer where it ends earlier, OSError where before."""
    with _service(url) as (filesystem, inner):
        content: bytes = filesystem.cat_file(inner, start=offset, end=offset + size)
        return content


def size_of(path: str | Path) -> int:
    """Size in bytes of a file or URL; raises as `open_file` does."""
    if not is_url(path):
        return Path(path).stat().st_size
    with _service(str(path)) as (filesystem, inner):
        size = filesystem.info(inner)["size"]
        return len(filesystem.cat_file(inner)) if size is None else int(size)  # a server may not tell


def version_of(url: str) -> str:
    """What tells one content of a URL from another without reading it: its ETag, or else size and time of change."""
    with _service(url) as (filesystem, inner):
        facts = filesystem.info(inner)
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
        with _service(str(path)) as (filesystem, inner):
            filesystem.put_file(str(temporary), inner)


@contextmanager
def _service(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; errors name the URL, and faults of the set-up say what to do."""
    scheme = url.partition("://")[0].lower()
    if scheme in {"file", "local"}:
        raise ValueError(f"{url}: write a local file as a plain path.")
    if redact(url) != url:
        raise ValueError(f"{redact(url)}: stands with credentials; put them into the environment instead.")
    try:
        yield fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        fix = f'pip install "omnitune[{extra}]"' if extra else f"install what reads {scheme}:// ({error})"
        raise ValueError(f"{url}: {scheme}:// needs a further package: {fix}.") from None
    except FileNotFoundError as error:
        cause = error.__cause__  # over HTTP, whatever keeps a size from being known comes as this error
        if scheme in {"http", "https"} and cause and getattr(cause, "status", None) not in {404, 410}:
            raise ConnectionError(f"{url}: {cause}") from None
        raise FileNotFoundError(f"{url}: not found ({error})") from None
    except (PermissionError, IsADirectoryError) as error:
        raise type(error)(f"{url}: {error}") from None
    except OSError as error:
        kind = ConnectionError if scheme in {"http", "https"} else OSError
        raise kind(f"{url}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{url}: cannot be opened: {error}") from None
    except Exception as error:  # each service has errors of its own
        if "Credentials" in type(error).__name__:
            raise ValueError(
                f"{url}: no credentials were found. Put them into the environment, as the service's own tools read them "
                "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
            ) from None
        status = getattr(error, "status", None)  # of an answer over HTTP
        if status in {404, 410}:
            raise FileNotFoundError(f"{url}: not found ({error})") from None
        if status in {401, 403}:
            raise PermissionError(f"{url}: {error}") from None
        kind = ConnectionError if status else OSError
        raise kind(f"{url}: {type(error).__name__}: {error}") from None
