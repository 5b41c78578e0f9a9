"""What a person can do about a download from the hub that has failed."""

import errno

from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from omnitune.errors import reason_of

LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}  # of the disk, not of the network


def what_to_do(error: Exception, elsewhere: str = "") -> str:
    """Why a download failed and what to do about it; `elsewhere` is what one may do besides, " Or ..", or ""."""
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
