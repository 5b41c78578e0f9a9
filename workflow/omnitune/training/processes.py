"""Launched processes: who they are and when they end."""

import ctypes
import fcntl
import os
import signal
from pathlib import Path
from typing import IO


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its launcher dies, so that no orphan goes on writing checkpoints."""
    if os.name == "posix" and hasattr(signal, "SIGKILL"):
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        except (OSError, AttributeError):  # not Linux: the launcher's own clean-up must do
            return


def launched_rank() -> int:
    """Number of this process among all, as the launcher set it."""
    return int(os.environ.get("RANK", "0"))


def lock(output: Path) -> IO[str]:
    """Takes the experiment's folder for this training; raises ValueError if another one holds it."""
    output.mkdir(parents=True, exist_ok=True)
    file = (output / ".train.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{output}: another training is writing here. Wait for it or stop it.") from None
    return file
