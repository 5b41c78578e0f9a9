"""A lock that says who holds it, and that he lives: for file systems of clusters.

Some show a lock to one machine alone, others keep that of a machine which is dead. So the holder leaves a note beside
the lock and dates it anew every few seconds. No clock of another machine is compared: whether a note is kept up, is
watched.
"""

import logging
import os
import platform
import threading
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from omnitune.io.files import Held, Lock, lock, open_regular, write_json
from omnitune.io.json_object import parse_json

BEAT_SECONDS = 10.0
WATCHED_BEATS = 3  # without one of which a holder on another machine is taken for dead

logger = logging.getLogger("omnitune")


class NotedLock:
    """A lock that is held, with a note on its holder, until it is closed, nobody has it any more, or the process ends.

    Args:
        held: the lock.
        note: the file beside it.
    """

    def __init__(self, held: Lock, note: Path) -> None:
        self._held, ended = held, threading.Event()
        job = os.environ.get("SLURM_JOB_ID")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        process = {"host": platform.node(), "kernel": _kernel(), "process": os.getpid()}
        write_json(note, {**process, "slurm_job": job, "since": since})
        threading.Thread(target=_keep_up, args=(note, ended), daemon=True).start()
        self._end = weakref.finalize(self, _end, note, ended, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the note, and frees the lock."""
        self._end()
        self._held.close()


def lock_with_note(path: Path, message: str) -> NotedLock:
    """Holds a lock file as `lock` does, and a note beside it: {name}.json.

    Raises Held, the message followed by what is known of the holder and what to do, where another process holds it, be
    it on a machine whose locks this one does not see; what `lock` raises else.
    """
    note = path.with_name(f"{path.name}.json")
    try:
        held = lock(path, message)
    except Held:
        raise Held(_explained(message, _read(note), path)) from None
    holder = _read(note)
    if holder and holder.get("kernel") != _kernel() and _is_kept_up(note, holder):
        held.close(remove=False)
        raise Held(_explained(message, holder, path))
    return NotedLock(held, note)


def _explained(message: str, holder: dict[str, Any], path: Path) -> str:
    if not holder:
        return f"{message}. Wait for it or stop it."
    job = f" of SLURM job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    who = f"process {holder.get('process')} on {holder.get('host')}{job}, since {holder.get('since')}"
    silent = time.time() - (holder["seen"] or 0)
    if silent < WATCHED_BEATS * BEAT_SECONDS:
        return f"{message}: {who}. Wait for it or stop it."
    return (
        f"{message}: {who}, not heard of for {silent:.0f} s. Stop it; where its machine is dead and the file system "
        f"still keeps the lock: rm {path}"
    )


def _is_kept_up(note: Path, holder: dict[str, Any]) -> bool:
    """Whether a process on another machine still dates its note anew."""
    logger.info("%s: looks for up to %.0f s whether its holder lives", note, WATCHED_BEATS * BEAT_SECONDS)
    until = time.monotonic() + WATCHED_BEATS * BEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 10)
        found = _read(note)
        if not found:
            return False  # it has ended in this moment
        if found["seen"] != holder["seen"]:
            return True
    return False


def _read(note: Path) -> dict[str, Any]:
    """What a note says, and `seen`, when it was dated; nothing where there is none, or a damaged one."""
    # opened in any case, as NFS shows old times else
    with suppress(OSError, ValueError), open_regular(note) as file:
        return {**parse_json(file.read()), "seen": os.fstat(file.fileno()).st_mtime}
    return {}


def _keep_up(note: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(note, follow_symlinks=False)


def _end(note: Path, ended: threading.Event, process: int) -> None:
    if os.getpid() == process:  # and no copy that it has forked
        ended.set()
        with suppress(OSError):
            note.unlink(missing_ok=True)


def _kernel() -> str:
    """What runs since a machine's start, within which locks are always seen."""
    with suppress(OSError):  # there on Linux alone
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return platform.node()
