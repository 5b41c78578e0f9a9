"""Which URLs are read at all, and whether a place lies below a folder or URL."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from omnitune.errors import ConfigError, Refused
from omnitune.io import storage
from omnitune.io.jsonl import shown

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "http", "https")  # others may lead to this machine's own files
URL_PARTS = re.compile(
    r"(?P<scheme>[^:]+)://(?P<host>[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/(?P<path>.+)", re.DOTALL
)


def check_url(url: str) -> None:
    """Refuses what no service could answer, URLs that lead through other file systems, and those that hold credentials.

    Raises:
        Refused: bad_url.
    """
    if storage.redact(url) != url:
        message = f"{shown(storage.redact(url))} holds credentials, which would be written down; they belong in the environment"
        raise Refused("bad_url", message)
    match = URL_PARTS.fullmatch(url)
    known = match is not None and match["scheme"].lower() in SCHEMES and int(match["port"] or 0) < 65536
    if not known or "::" in url:
        known_schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise Refused("bad_url", f"{shown(url)} is not read; write a URL with host and name of {known_schemes}")


def require_below(place: str | Path, roots: Sequence[str | Path], where: str, fix: str) -> None:
    """Raises ConfigError, with `where` it is named and the fix, for a place outside all of the roots, links followed."""
    if not any(is_below(place, root) for root in roots):
        target = place if storage.is_url(place) else os.path.realpath(place)
        raise ConfigError(
            f"{where}: {place} leads to {target}, which is outside {' and '.join(map(str, roots))}. {fix}."
        )


def is_below(place: str | Path, root: str | Path) -> bool:
    """Whether a place lies below a folder or URL once links and `..` are resolved."""
    if storage.is_url(root) or storage.is_url(place):
        # A service may take `..`, also as %2e%2e, for the folder above; there is no honest use of it in a URL.
        climbs = ".." in re.split(r"[/\\]", unquote(unquote(str(place))))
        return not climbs and str(place).startswith(f"{str(root).rstrip('/')}/")
    try:
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root))
    except ValueError:  # a NUL byte: there is no such file anywhere, which the reader finds out
        return True
