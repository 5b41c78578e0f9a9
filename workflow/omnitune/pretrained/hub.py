"""Downloads from the hub: a snapshot of a repository, or one sentence that says what to do."""

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from omnitune.errors import reason_of
from omnitune.pretrained.files import ENCODER_KEY, VAE_KEY

LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}  # of the disk, not of the network

logger = logging.getLogger("omnitune")


def fetch_repository(
    name: str,
    revision: str | None,
    key: str,
    cache_dir: str | None,
    patterns: Sequence[str] | None,
    *,
    downloaded: bool = False,
) -> Path:
    """A folder of the cache with the files of a repository.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None for the newest.
        key: the one that names it, for the message.
        cache_dir: None for the library's own.
        patterns: of the files that are fetched; None for all.
        downloaded: take what the cache has, and ask nobody.

    Raises:
        ValueError: where it cannot be fetched: what to do depends on why.
    """
    allowed = None if patterns is None else list(patterns)
    if not downloaded:
        logger.info("fetching %s, revision %s", name, revision or "newest")
    try:
        return Path(
            snapshot_download(
                name, revision=revision, cache_dir=cache_dir, allow_patterns=allowed, local_files_only=downloaded
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{key}: {name!r} (revision {revision or 'newest'}) could not be fetched: {_what_to_do(error, key)}"
        ) from None


def _what_to_do(error: Exception, key: str) -> str:
    elsewhere = (
        "" if key not in {VAE_KEY, ENCODER_KEY} else f" Or leave {key} out: the base model has a part of its own."
    )
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
