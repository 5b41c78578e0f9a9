"""Where the images of a row may lie, and which places are out of bounds."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from omnitune.errors import Refused
from omnitune.io import storage
from omnitune.io.jsonl import shown

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "http", "https")  # others may lead to this machine's own files
SIGNED = re.compile(r"[?&](X-Amz-Signature|X-Goog-Signature|sig)=", re.IGNORECASE)
URL_PARTS = re.compile(
    r"(?P<scheme>[^:]+)://(?P<host>[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/(?P<path>.+)", re.DOTALL
)


def image_places(image: str, samples: str, root: str | None = None) -> list[str]:
    """Where an image is looked for: beside the .jsonl, then from the working directory; an absolute path or URL is itself.

    Args:
        image: as it stands in the row.
        samples: path or URL of the .jsonl.
        root: a folder or URL, below which alone images may lie; None allows every place.

    Raises:
        Refused: bad_url; outside_image_root where no place is below the root.
    """
    if storage.is_url(image):
        _check_url(image)
        places = [image]
    elif Path(image).is_absolute():
        places = [image]
    else:
        beside = storage.join(storage.parent(samples), image)
        if storage.is_url(beside):
            _check_url(beside)
        places = [beside if storage.is_url(beside) else str(Path(beside)), str(Path(image))]
    if root is not None:
        places = [place for place in places if is_below(place, root)]
        if not places:
            raise Refused("outside_image_root", f"{shown(image)} does not lie below data.image_root: {root}")
    return list(dict.fromkeys(places))


def is_below(place: str, root: str) -> bool:
    """Whether a place lies below a folder or URL once links and `..` are resolved."""
    if storage.is_url(root) or storage.is_url(place):
        # A service may take `..`, also as %2e%2e, for the folder above; there is no honest use of it in a URL.
        climbs = ".." in re.split(r"[/\\]", unquote(unquote(place)))
        return not climbs and place.startswith(f"{root.rstrip('/')}/")
    try:
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root))
    except ValueError:  # a NUL byte: there is no such file anywhere, which the reader finds out
        return True


def _check_url(url: str) -> None:
    """Refuses what no service could answer, URLs that lead through other file systems, and those that hold credentials."""
    if "@" in url.partition("://")[2].partition("/")[0] or SIGNED.search(url):
        message = f"{shown(storage.redact(url))} holds credentials, which would be written down; they belong in the environment"
        raise Refused("bad_url", message)
    match = URL_PARTS.fullmatch(url)
    known = match is not None and match["scheme"].lower() in SCHEMES and int(match["port"] or 0) < 65536
    if not known or "::" in url:
        known_schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise Refused("bad_url", f"{shown(url)} is not read; write a URL with host and name of {known_schemes}")
