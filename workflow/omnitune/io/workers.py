"""Run work in parallel, in order and with bounded memory."""

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

WAITING_PER_WORKER = 3  # tasks handed out ahead, so that no worker waits and memory stays bounded


def ordered_map(function: Callable[[TaskT], ResultT], tasks: Iterable[TaskT], workers: int) -> Iterator[ResultT]:
    """Yields function(task) in the order of the tasks, computed by worker processes; 1 worker: in this process.

    Tasks are taken from the iterable only a few ahead of what has been yielded. The first error ends it.

    Args:
        function: importable from a module, as it is sent to other processes.
        tasks: picklable, may be endless.
        workers: number of processes, at least 1.

    Raises:
        OSError: where a worker process was killed.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} is not allowed: needs 1 or more")
    if workers == 1:
        yield from map(function, tasks)
        return
    with _pool(workers) as pool:
        waiting: deque[Future[ResultT]] = deque()
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > workers * WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose open tasks are dropped when the block ends by an error."""
    # Forked workers start at once and do not run the main script a second time, which spawned ones do. What runs in
    # them neither forks nor takes locks of the parent: it reads files, decodes images and returns plain values.
    # libvips' threads would not survive a fork: once it has been used here, workers are spawned.
    can_fork = "fork" in multiprocessing.get_all_start_methods() and "pyvips" not in sys.modules
    method = "fork" if can_fork else "spawn"
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))
    try:
        yield pool
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed, most likely for want of memory. Give the job more memory or fewer workers, "
            "or lower data.max_image_pixels."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
