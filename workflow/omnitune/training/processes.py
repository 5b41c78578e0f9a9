"""Launched processes: who they are and when they end."""

import ctypes
import os
import signal


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
