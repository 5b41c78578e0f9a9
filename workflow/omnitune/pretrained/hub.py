"""Downloads from the hub: a snapshot of a repository, or one sentence that says what to do."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omnitune.io.model_files.hub import download
from omnitune.pretrained.files import ENCODER_KEY, VAE_KEY

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
    own = key in {VAE_KEY, ENCODER_KEY}
    elsewhere = f" Or leave {key} out: the base model has a part of its own." if own else ""
    options = {"cache_dir": cache_dir, "allow_patterns": allowed, "local_files_only": downloaded}
    return download(name, revision, key, elsewhere, **options)
