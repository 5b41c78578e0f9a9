"""Which URLs are read, whether a place lies below a folder or URL, and whether a name is a path or a repository."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from omnitune.errors import ConfigError, Refused, shown
from omnitune.io import storage
from omnitune.io.url_limits import is_below_url
from omnitune.paths import local_problem

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "http", "https")  # others may lead to this machine's own files
URL_PARTS = re.compile(
    r"(?P<scheme>[^:]+)://(?P<host>[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/(?P<path>.+)", re.DOTALL
)


REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_local(name: str, where: str) -> bool:
    """Whether a value that is a path or a repository id (owner/name) is a path, which exists then.

    Args:
        name: the value.
        where: the option or key that has it, for the message.

    Raises:
        ValueError: for what is neither, or looks like a path and does not exist: a typo is not looked for in a network.
    """
    if problem := local_problem(name):
        raise ValueError(f"{where}: {shown(storage.redact(name))} {problem}.")
    path = Path(name)
    if path.exists():
        return True
    is_id = REPOSITORY.fullmatch(name) is not None
    if is_id and not path.parent.is_dir():
        return False
    if "/" not in name and not name.startswith("."):
        raise ValueError(f"{where}: {name!r} is neither a path that exists nor a repository id (owner/name).")
    lost = next((folder for folder in reversed(path.parents) if not folder.exists()), path)
    names = [entry.name for entry in lost.parent.iterdir()] if lost.parent.is_dir() else []
    close = difflib.get_close_matches(lost.name, names, n=1)
    hint = f"Did you mean {str(lost.parent / close[0])!r}?" if close else "Check the path."
    if name.startswith("~"):
        hint = "Write the home folder out: `~` is a sign of the shell."
    if is_id:
        hint += f" If a repository is meant: `hf download {name} --local-dir FOLDER`, and name FOLDER."
    part = "" if lost == path else f": there is no {str(lost)!r}"
    raise ValueError(f"{where}: {name!r} does not exist{part}. {hint}")


def check_url(url: str) -> None:
    """Refuses what no service could answer, URLs that lead through other file systems, and those that hold credentials.

    Raises:
        Refused: bad_url.
    """
    if storage.redact(url) != url:
        message = (
            f"{shown(storage.redact(url))} holds credentials, which would be written down; they belong in the "
            "environment"
        )
        raise Refused("bad_url", message)
    match = URL_PARTS.fullmatch(url)
    known = match is not None and match["scheme"].lower() in SCHEMES and int(match["port"] or 0) < 65536
    if not known or "::" in url:
        known_schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise Refused("bad_url", f"{shown(url)} is not read; write a URL with host and name of {known_schemes}")


def require_below(place: str | Path, roots: Sequence[str | Path], where: str, fix: str) -> None:
    """Raises ConfigError, with `where` it is named and the fix, for a place outside all the roots, links followed."""
    if not any(is_below(place, root) for root in roots):
        target = place if storage.is_url(place) else os.path.realpath(place)
        named = str(place) if str(place) == str(target) else f"{place} leads to {target}, which"
        outside = " and ".join(
            dict.fromkeys("the working directory" if str(root) == "." else str(root) for root in roots)
        )
        raise ConfigError(f"{where}: {named} is outside {outside}. {fix}.")


def is_below(place: str | Path, root: str | Path) -> bool:
    """Whether a place lies below a folder or URL once links and `..` are resolved."""
    if storage.is_url(root) or storage.is_url(place):
        return is_below_url(str(place), str(root))
    try:
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root))
    except ValueError:  # a NUL byte: there is no such file anywhere, which the reader finds out
        return True
