"""Downloads of repositories from the hub: a folder of its cache, or a sentence that says what to do."""

import errno
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from omnitune.errors import reason_of

LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}  # of the disk, not of the network


def download(name: str, revision: str | None, what: str, elsewhere: str = "", **options: Any) -> Path:
    """The folder of a repository's files.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None for the newest.
        what: who asks for it, for the message: a key, an option.
        elsewhere: what one may do besides where it fails, " Or ..", or "".
        options: for huggingface_hub.snapshot_download.

    Raises:
        ValueError: where it cannot be fetched: what to do depends on why.
    """
    try:
        return Path(snapshot_download(name, revision=revision, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        asked = f"{what}: {name!r} (revision {revision or 'newest'})"
        raise ValueError(f"{asked} could not be fetched: {_what_to_do(error, elsewhere)}") from None


def _what_to_do(error: Exception, elsewhere: str) -> str:
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        token = get_token()
        login = "with the account of the token that is set" if token else "and log in with `hf auth login`"
        return f"it is gated. Accept its licence on its page at huggingface.co, {login}.{elsewhere}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and no token that is set may read it. Check the id."
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision. Take a branch, a tag or a commit of its page."
    if isinstance(error, OSError) and error.errno in LOCAL_FAULTS:
        return f"{reason_of(error).rstrip('.')}. `cache_dir` names a folder for downloads with room."
    return f"{reason_of(error).rstrip('.')}. Check the network, try again later, or name a local folder.{elsewhere}"
