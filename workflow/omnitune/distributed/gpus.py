"""The GPUs of one machine, shared by the jobs that a workflow runs side by side. Imports nothing heavy.

Snakemake counts a resource, and does not say which of its units a job has; so each job takes its own here.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from omnitune.io.files import Held, lock

logger = logging.getLogger("omnitune")

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHARED = "OMNITUNE_SHARED_GPUS"  # set by a workflow that runs its jobs on this machine: the names of its GPUs
DEVICES = Path("/dev")
LOCKS = Path("logs/gpus")
POLL_SECONDS = 1.0


def machine_gpus() -> list[str]:
    """The NVIDIA GPUs that processes of this machine see, by the names that CUDA_VISIBLE_DEVICES takes."""
    found = sum(path.name.removeprefix("nvidia").isdecimal() for path in DEVICES.glob("nvidia[0-9]*"))
    visible = os.environ.get(VISIBLE)
    if not found or visible is None:
        return [str(number) for number in range(found)]
    names = []
    for name in map(str.strip, visible.split(",")):
        if not name or name.startswith("-") or (name.isdecimal() and int(name) >= found):
            break  # as CUDA does, which ignores what stands behind a number that it does not know
        names.append(name)
    return names


def shared_gpus(local: bool) -> list[str]:
    """The GPUs that the jobs of a workflow share, made known to them; none where jobs do not run on this machine."""
    os.environ.pop(SHARED, None)
    gpus = machine_gpus() if local else []
    if gpus:
        os.environ[SHARED] = ",".join(gpus)
    return gpus


@contextmanager
def reserved_gpus(number: int) -> Iterator[None]:
    """Takes so many of the shared GPUs for this process and those that it starts, and waits for them if it must.

    Where none are shared, as in the job of a cluster, whose scheduler does this, nothing is changed.

    Args:
        number: 0 hides all of them.

    Raises:
        ValueError: for more than there are.
    """
    names = [name for name in os.environ.get(SHARED, "").split(",") if name]
    if not names:
        yield
        return
    if number > len(names):
        raise ValueError(f"gpus_per_node: {number} is not allowed: this machine has {len(names)} GPUs.")
    with ExitStack() as held:
        taken = _wait_for(names, number, held)
        os.environ[VISIBLE] = ",".join(taken)
        if taken:
            logger.info("takes GPU %s", ", ".join(taken))
        yield


def _wait_for(names: Sequence[str], number: int, held: ExitStack) -> list[str]:
    """The first free GPUs, all of them or none."""
    waits = False
    while True:
        with ExitStack() as stack:
            taken: list[str] = []
            for name in names:
                if len(taken) == number:
                    break
                try:
                    stack.enter_context(lock(LOCKS / f"{socket.gethostname()}-{name}.lock", "in use"))
                except Held:
                    continue
                taken.append(name)
            if len(taken) == number:
                held.enter_context(stack.pop_all())
                return taken
        if not waits:
            logger.info("waits for %d free GPU(s) of %d", number, len(names))
            waits = True
        time.sleep(POLL_SECONDS)
