"""Upload a folder of converted weights to a repository of the hub, once it has been found to be what was converted."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from omnitune.conversion.card import CARD_FILE
from omnitune.errors import reason_of
from omnitune.io.files import sha256_of
from omnitune.io.json_object import FETCH, read_json
from omnitune.paths import CONVERSION_FILE

TOKEN = "HF_TOKEN"  # the only place that a token is taken from
# Of the client that the library asks with, whichever it is.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
CARD_LINES = 25  # of the card's head, that are shown
# URLs are no paths of a machine, but for those of files.
URL = re.compile(r"\b(?!file:)[A-Za-z][A-Za-z0-9+.-]+://[^\s`'\")\]>]*")
START = r"(?<![\w./\\~^*?$<>}\])&;-])"  # not amid a relative path, a pattern, a tag
PART = r"[\w.@+~%=-][^\s/\\`'\"()\[\]{}<>|*?,;:]*"
# An absolute path of at least two parts, the first with a letter; below a home; of Windows, by drive or server; a
# file's URL.
PRIVATE = re.compile(
    rf"{START}/{{1,2}}(?=[^\s/]*[^\W\d]){PART}(?:/{PART})+|(?<![\w/])~\w*/{PART}[^\s`'\")\]]*"
    rf"|(?<!\w)[A-Za-z]:[\\/](?!/|[nrt]\b){PART}(?:[\\/]{PART})*|(?<![\\\w])\\\\{PART}\\{PART}(?:\\{PART})*"
    r"|file:/[^\s`'\")\]|]+"
)
LOOKED_AT = (".md", ".json")
VOCABULARIES = ("tokenizer.json", "vocab.json")  # words of any text


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
            is missing, other than it was written, or too much, and a text in it that names a path of a machine.
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
    for name, path in found.items():
        if path.suffix in LOOKED_AT and path.name not in VOCABULARIES:
            _require_public(folder / name)
    return Upload(folder, repo, {name: path.stat().st_size for name, path in found.items()})


def upload(what: Upload, *, private: bool) -> str:
    """Makes the repository where there is none and uploads all files in one commit; returns the commit's address.

    Raises:
        ValueError: without a token, where the hub refuses or does not answer, and for a public repository that is to be
            private.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise ValueError(f"{TOKEN} is not set: set it to a token that may write to {what.repo}, and call again.")
    api = HfApi(token=token)
    try:
        api.create_repo(what.repo, repo_type="model", private=private, exist_ok=True)
        if private and not api.model_info(what.repo).private:  # one that exists is left as it is
            raise ValueError(
                f"{what.repo}: exists and is public, whatever --private says. Nothing was uploaded. Make it private in "
                "its settings, name another, or leave --private out."
            )
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
    for where, text in _texts(path):
        found = PRIVATE.search(URL.sub(" ", text)) or _home_in(text)
        if found:
            raise ValueError(
                f"{path}, {where}: names {found[0]}, a path of this machine. Take it out of where it comes from (the "
                "options, or this file of the base model), and convert again."
            )


def _home_in(text: str) -> re.Match[str] | None:
    """The user's own folder, whatever stands before it; that of a container may be /, which says nothing."""
    home = str(Path.home())
    return re.search(rf"{re.escape(home)}(?!\w)", text) if len(home) > 1 else None


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Where in a file each of its texts stands, and the text, as it reads without what JSON puts before signs."""
    if path.suffix == ".json":
        yield from _strings(read_json(path), "")
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no UTF-8 text ({error}). Convert again.") from None
        yield from ((f"line {number}", line) for number, line in enumerate(lines, 1))


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, content in value.items():
            yield key or "keys", name
            yield from _strings(content, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for content in value:
            yield from _strings(content, key)
