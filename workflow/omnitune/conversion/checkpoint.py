"""Whether a checkpoint is the one that was trained. Imports nothing heavy."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omnitune.checkpoints.states import check_files, read_state
from omnitune.io.files import sha256_of
from omnitune.io.kept import Trained, read_kept
from omnitune.paths import METADATA_FILE, STATE_FILE


@contextmanager
def hashing_thread(*, wait: bool) -> Iterator[ThreadPoolExecutor]:
    """A thread for hashes beside other work; when that fails, what is not begun yet is left out.

    Args:
        wait: for what is begun, as its file is about to be removed, which some file systems refuse then.
    """
    thread = ThreadPoolExecutor(1)
    try:
        yield thread
    finally:
        thread.shutdown(wait=wait, cancel_futures=True)


def check_checkpoint(checkpoint: Path, part: str) -> tuple[str | None, list[Callable[[], None]]]:
    """Whether a checkpoint is what training has saved, as far as it is found out at once.

    What its metadata say, names and shapes of tensors, can be relied on then.

    Args:
        checkpoint: a folder that training wrote; of anything else nothing is known.
        part: the folder in it whose files are looked at.

    Returns:
        the hash of what the checkpoint says of itself, None where it says nothing, and for each file a call that
        hashes it and raises ValueError where it is another.

    Raises:
        ValueError: for metadata that are others, or a checkpoint that is not the one that train.json names.
    """
    if (checkpoint.parent / STATE_FILE).is_file():  # a part of a checkpoint, named by itself
        checkpoint, part = checkpoint.parent, checkpoint.name
    if not (checkpoint / STATE_FILE).is_file():
        return None, []
    state, sha256 = read_state(checkpoint), sha256_of(checkpoint / STATE_FILE)
    manifest = checkpoint.parent / "train.json"
    known = read_kept(manifest, Trained).get("states", {}) if manifest.is_file() else {}
    if known.get(str(state.step), sha256) != sha256:
        raise ValueError(
            f"{checkpoint}: is not the checkpoint that {manifest} names (another hash of {STATE_FILE}). To train on "
            f"and name it: rm {manifest}, then snakemake --cores 2 train"
        )
    names = [name for name in state.files if name.startswith(f"{part}/")]
    check_files(checkpoint, state, [name for name in names if name.endswith(f"/{METADATA_FILE}")])
    return sha256, [partial(check_files, checkpoint, state, [name]) for name in names]
