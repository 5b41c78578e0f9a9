"""Upload a folder of converted weights to a repository of the hub, once it has been found to be what was converted."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from omnitune.conversion.card import CARD_FILE
from omnitune.errors import reason_of
from omnitune.io.files import sha256_of
from omnitune.io.weights import FETCH, read_json
from omnitune.paths import CONVERSION_FILE

TOKEN = "HF_TOKEN"  # the only place that a token is taken from
# Of the client that the library asks with, whichever it is.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
CARD_LINES = 25  # of the card's head, that are shown
# What stands on one machine alone: absolute paths below usual roots, of a home, of Windows, file URLs.
PRIVATE = re.compile(
    r"(?<![\w:/.])/(?:home|root|Users|mnt|media|data|scratch|tmp|var|srv|opt|work|workspace|gpfs|lustre|nfs)\b[^\s`'\")\]|]*"
    r"|(?<!\w)~/[^\s`'\")\]|]+|\b[A-Za-z]:\\[^\s`'\")\]|]*|file://[^\s`'\")\]|]+"
)


@dataclass(frozen=True)
class Upload:
    """What a folder would put into a repository.

    Attributes:
        folder: of converted weights.
        repo: owner/name.
        files: sizes in bytes by path in the folder.
    """

    folder: Path
    repo: str
    files: dict[str, int]

    @property
    def card(self) -> str:
        """The head of the model card."""
        return "\n".join((self.folder / CARD_FILE).read_text(encoding="utf-8").splitlines()[:CARD_LINES])


def prepare_upload(folder: Path, repo: str) -> Upload:
    """Finds out what would be uploaded; asks nobody.

    Raises:
        ValueError: for a name that no repository can have, a folder that is no verified conversion, a file of it that
            is missing, other than it was written, or too much, and a card that names paths of this machine.
    """
    _require_name(repo)
    hashes = _written(folder)
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _is_file(path)}
    strange = sorted(found.keys() - hashes.keys() - {CONVERSION_FILE})
    if strange:
        raise ValueError(f"{folder / strange[0]}: was not written by the conversion. Move it away, or convert again.")
    for name, sha256 in hashes.items():
        if name not in found:
            raise ValueError(f"{folder / name}: is missing, which {CONVERSION_FILE} names. Convert again.")
        if sha256_of(found[name]) != sha256:
            raise ValueError(
                f"{folder / name}: is not what the conversion has written (its SHA-256 differs from "
                f"{CONVERSION_FILE}). Convert again."
            )
    for name in (CARD_FILE, CONVERSION_FILE):
        _require_public(folder / name)
    return Upload(folder, repo, {name: path.stat().st_size for name, path in found.items()})


def upload(what: Upload, *, private: bool) -> str:
    """Makes the repository where there is none and uploads all files in one commit; returns the commit's address.

    Raises:
        ValueError: without a token, and where the hub refuses or does not answer.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise ValueError(f"{TOKEN} is not set: set it to a token that may write to {what.repo}, and call again.")
    api = HfApi(token=token)
    try:
        api.create_repo(what.repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=what.repo,
            folder_path=what.folder,
            allow_patterns=list(what.files),
            commit_message=f"Upload {what.folder.name}",
        )
    except (CLIENT_ERROR, OSError, RuntimeError) as error:
        raise ValueError(
            f"{what.repo}: could not be uploaded: {reason_of(error).rstrip('.')}. {_advice(error)}"
        ) from None
    return str(commit.commit_url)


def _advice(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return f"Set {TOKEN} to a token of yours that may write there."
    return "Call again: what the repository has is not uploaded twice."


def _require_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
        known = repo.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise ValueError(f"REPO: {repo!r} is no name of a repository: needs owner/name.")


def _is_file(path: Path) -> bool:
    """Files, and links, which may lead out of the folder; Snakemake's notes and others' hidden files stay here."""
    return (path.is_file() or path.is_symlink()) and not path.name.startswith(".")


def _written(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by conversion.json, which must say that they were verified."""
    manifest = folder / CONVERSION_FILE
    if not manifest.is_file():
        raise ValueError(f"{folder}: has no {CONVERSION_FILE}: give a folder that `omnitune convert` has written.")
    report = read_json(manifest)
    files = report.get("files")
    if not report.get("verified") or not isinstance(files, dict):
        raise ValueError(f"{manifest}: says of no verification. Convert again.")
    if CARD_FILE not in files:
        raise ValueError(f"{manifest}: names no model card ({CARD_FILE}): `omnitune convert` writes one.")
    entries = {name: entry for name, entry in files.items() if isinstance(entry, dict)}
    hashes = {name: str(entry["sha256"]) for name, entry in entries.items() if "sha256" in entry}
    if hashes.keys() != files.keys():
        raise ValueError(f"{manifest}: has no SHA-256 of a file. {FETCH}")
    return hashes


def _require_public(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for found in _private_paths(line):
            raise ValueError(f"{path}, line {number}: names {found}, a path of this machine. Convert again without it.")


def _private_paths(line: str) -> Iterator[str]:
    yield from (match[0] for match in PRIVATE.finditer(line))
    home = str(Path.home())
    yield from [home] if len(home) > 1 and home in line else []
