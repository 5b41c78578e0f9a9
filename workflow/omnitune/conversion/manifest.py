"""conversion.json: what a folder of converted weights says of itself, and whether that is true. Imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

from omnitune.checkpoints.states import check_files, read_state
from omnitune.io.files import sha256_of
from omnitune.paths import CONVERSION_FILE, STATE_FILE


def read_conversion(folder: Path) -> dict[str, Any]:
    """The content of conversion.json; ValueError where it is missing or damaged."""
    path = Path(folder) / CONVERSION_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). {_fix(folder)}") from None
    return content


def check_conversion(folder: Path) -> dict[str, Any]:
    """The same, once each file has been found to be what was written; ValueError names the one that is not."""
    content = read_conversion(folder)
    for name, facts in content["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(f"{path}: is missing. {_fix(folder)}")
        if sha256_of(path) != facts["sha256"]:
            raise ValueError(
                f"{path}: is not what was converted (its SHA-256 differs from {CONVERSION_FILE}). {_fix(folder)}"
            )
    return content


def check_checkpoint(checkpoint: Path, part: str) -> str | None:
    """Hash of what a checkpoint says of itself, once its files have been found to be what training has saved.

    Args:
        checkpoint: a folder that training wrote; None is returned for anything else.
        part: the folder in it whose files are looked at.

    Raises:
        ValueError: for a file that is another, or a checkpoint that is not the one that train.json names.
    """
    if not (checkpoint / STATE_FILE).is_file():
        return None
    state, sha256 = read_state(checkpoint), sha256_of(checkpoint / STATE_FILE)
    manifest = checkpoint.parent / "train.json"
    known = json.loads(manifest.read_text(encoding="utf-8")).get("states", {}) if manifest.is_file() else {}
    if known.get(str(state.step), sha256) != sha256:
        raise ValueError(
            f"{checkpoint}: is not the checkpoint that {manifest} names (another hash of {STATE_FILE}). To train on and name "
            f"it: rm {manifest}, then snakemake --cores 2 train"
        )
    check_files(checkpoint, state, [name for name in state.files if name.startswith(f"{part}/")])
    return sha256


def _fix(folder: Path) -> str:
    return f"Convert again: snakemake --cores 2 --force {Path(folder) / CONVERSION_FILE}"
