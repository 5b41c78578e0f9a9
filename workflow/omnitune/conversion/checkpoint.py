"""Whether a checkpoint is the one that was trained. Imports nothing heavy."""

import json
from pathlib import Path

from omnitune.checkpoints.states import check_files, read_state
from omnitune.io.files import sha256_of
from omnitune.paths import STATE_FILE


def check_checkpoint(checkpoint: Path, part: str) -> str | None:
    """Hash of what a checkpoint says of itself, once its files have been found to be what training has saved.

    Args:
        checkpoint: a folder that training wrote; None is returned for anything else.
        part: the folder in it whose files are looked at.

    Raises:
        ValueError: for a file that is another, or a checkpoint that is not the one that train.json names.
    """
    if (checkpoint.parent / STATE_FILE).is_file():  # a part of a checkpoint, named by itself
        checkpoint, part = checkpoint.parent, checkpoint.name
    if not (checkpoint / STATE_FILE).is_file():
        return None
    state, sha256 = read_state(checkpoint), sha256_of(checkpoint / STATE_FILE)
    manifest = checkpoint.parent / "train.json"
    known = json.loads(manifest.read_text(encoding="utf-8")).get("states", {}) if manifest.is_file() else {}
    if known.get(str(state.step), sha256) != sha256:
        raise ValueError(
            f"{checkpoint}: is not the checkpoint that {manifest} names (another hash of {STATE_FILE}). To train on "
            f"and name it: rm {manifest}, then snakemake --cores 2 train"
        )
    check_files(checkpoint, state, [name for name in state.files if name.startswith(f"{part}/")])
    return sha256
