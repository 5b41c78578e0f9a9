"""Run work in processes of its own, in order and with bounded memory: one that dies takes down its item and no more."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

WAITING_PER_WORKER = 3  # portions taken ahead of what was yielded, so that no worker waits and memory stays bounded
PARENT_SECONDS = 5  # between looks at whether the parent is still there
TRIES = 2  # of an item whose process is killed: the kernel may have chosen it for the memory of another one
WORKER = "omnitune-worker"  # name of the processes


def ordered_map(
    function: Callable[[ItemT], ResultT],
    portions: Iterable[Sequence[ItemT]],
    workers: int,
    died: Callable[[ItemT, int], ResultT],
    may_fork: bool = True,
) -> Iterator[list[ResultT]]:
    """Yields the results of each portion's items, in order, computed by worker processes.

    Portions are taken from the iterable only a few ahead of what has been yielded. The first error ends it.

    Args:
        function: of an item; importable from a module, where it may have to be imported in another process.
        portions: what a process gets at once, of one or more picklable items; there may be endless portions.
        workers: number of processes, at least 1.
        died: the result for an item whose process was ended, by its exit code: the negative number of a signal. An item
            that used up a `cpu_limit` is not tried a second time.
        may_fork: False where this process has threads of a library that the function uses, which Python does not know
            of. A single worker is this process itself then.

    A process with further threads is not forked, such as one that has read a URL: parent and child would share the set
    of connections that their event loops wait for, and one that either closes is never heard of in the other. Workers
    are then started anew, which takes as long as importing what the function needs.

    Raises:
        OSError: where processes cannot be started.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} is not allowed: needs 1 or more")
    may_fork = may_fork and "fork" in multiprocessing.get_all_start_methods()
    if workers == 1 and not may_fork:
        yield from ([function(item) for item in items] for items in portions)
        return
    with _pool(function, workers, may_fork) as pool:
        yield from _in_order(pool, iter(portions), died)


def _in_order(
    pool: "_Pool", source: Iterator[Sequence[ItemT]], died: Callable[[ItemT, int], ResultT]
) -> Iterator[list[ResultT]]:
    """Keeps the workers of a pool at work, and yields the results of each portion in its turn."""
    waiting = deque[_Portion[ItemT, ResultT]]()
    while True:
        while len(waiting) <= pool.size * WAITING_PER_WORKER and pool.has_idle():
            items = next(source, None)
            if items is None:
                break
            waiting.append(_Portion(items))
            pool.give(waiting[-1])
        if not waiting:
            return
        if waiting[0].is_done():
            yield waiting.popleft().results
        else:
            pool.advance(died)


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Ends the worker process that takes more CPU time in the block, also in a decoder; no other process."""
    if multiprocessing.current_process().name != WORKER:
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@dataclass
class _Portion(Generic[ItemT, ResultT]):
    items: Sequence[ItemT]
    results: list[ResultT] = field(default_factory=list)
    tries: int = 0  # of the item that is next

    def is_done(self) -> bool:
        return len(self.results) == len(self.items)

    def add(self, result: ResultT) -> None:
        self.results.append(result)
        self.tries = 0


class _Worker:
    """A process, and what it works on."""

    def __init__(self, function: Callable[[Any], Any], may_fork: bool) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:  # closed here, the pipe ends with the process
            self.process = _fork(theirs, function) if may_fork and threading.active_count() == 1 else _start(theirs)
        if isinstance(self.process, subprocess.Popen):
            with suppress(OSError):  # as in `give`
                self.pipe.send(function)
        self.portion: _Portion[Any, Any] | None = None
        self.has_started = False

    def give(self, portion: _Portion[Any, Any]) -> None:
        self.portion = portion
        with suppress(OSError):  # where it is dead, which the reader of its results finds
            self.pipe.send(list(portion.items[len(portion.results) :]))

    def end(self) -> None:
        self.process.kill()
        self.wait()
        self.pipe.close()

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait()
        self.process.join()
        return self.process.exitcode or 0


class _Pool:
    def __init__(self, function: Callable[[Any], Any], workers: int, may_fork: bool) -> None:
        self.function, self.size, self.may_fork = function, workers, may_fork
        self.workers: list[_Worker] = []

    def has_idle(self) -> bool:
        """Whether a worker has nothing to do, or has not been started yet."""
        return len(self.workers) < self.size or any(worker.portion is None for worker in self.workers)

    def give(self, portion: _Portion[Any, Any]) -> None:
        """Gives a portion to a worker that has nothing to do."""
        worker = next((worker for worker in self.workers if worker.portion is None), None)
        if worker is None:
            worker = _Worker(self.function, self.may_fork)
            self.workers.append(worker)
        worker.give(portion)

    def advance(self, died: Callable[[Any, int], Any]) -> None:
        """Waits for what some workers send, and takes it."""
        busy = [worker for worker in self.workers if worker.portion is not None]
        ready = wait([worker.pipe for worker in busy])
        for worker in [worker for worker in busy if worker.pipe in ready]:
            portion = worker.portion
            assert portion is not None
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker, portion, died)
                continue
            if kind == "error":
                raise value
            if kind == "result":
                portion.add(value)
            worker.has_started = True
            if portion.is_done():
                worker.portion = None

    def _replace(self, worker: _Worker, portion: _Portion[Any, Any], died: Callable[[Any, int], Any]) -> None:
        """Gives what a dead worker has left to a new one, but for an item that ends its process each time."""
        self.workers.remove(worker)
        code = worker.wait()
        worker.end()
        if not worker.has_started:
            raise OSError(f"a worker process ended as it started, with exit code {code}")
        portion.tries += 1
        if portion.tries == TRIES or code == -signal.SIGPROF:
            portion.add(died(portion.items[len(portion.results)], code))
        if not portion.is_done():
            self.give(portion)


@contextmanager
def _pool(function: Callable[[Any], Any], workers: int, may_fork: bool) -> Iterator[_Pool]:
    """A pool whose processes end with the block, whatever they are at."""
    pool = _Pool(function, workers, may_fork)
    try:
        yield pool
    finally:
        for worker in pool.workers:
            worker.end()


def _fork(pipe: Connection, function: Callable[[Any], Any]) -> BaseProcess:
    """A worker with all that this process has loaded; it starts at once."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_serve, args=(pipe, function, os.getpid()), daemon=True)
    process.start()
    return process


def _start(pipe: Connection) -> "subprocess.Popen[bytes]":
    """A worker with nothing of this process, not even its main script; it waits for the function."""
    program = (
        "import sys; sys.path[:] = sys.argv[3:]; from omnitune.io.workers import serve; serve(*map(int, sys.argv[1:3]))"
    )
    command = [sys.executable, "-c", program, str(pipe.fileno()), str(os.getpid()), *sys.path]
    # In a session of its own, Ctrl-C does not reach it while it loads.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[pipe.fileno()], start_new_session=True)


def serve(descriptor: int, parent: int) -> None:
    """The main function of a worker that was started anew: its end of the pipe, and the parent's process id."""
    pipe = Connection(descriptor)
    with suppress(EOFError, OSError):
        _serve(pipe, pipe.recv(), parent)


def _serve(pipe: Connection, function: Callable[[Any], Any], parent: int) -> None:
    """What a worker does: takes portions and sends the result of each item, until the parent is gone."""
    multiprocessing.current_process().name = WORKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which is interrupted as well, ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
        pipe.send(("started", None))
        while True:
            while not pipe.poll(PARENT_SECONDS):
                if os.getppid() != parent:
                    return
            for item in pipe.recv():
                pipe.send(_answer(function, item))
    except (EOFError, OSError):  # the parent is gone
        return


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory ends
        raise
    except Exception as error:
        return "error", _picklable(error)


def _picklable(error: Exception) -> Exception:
    error.add_note(f"In a worker process:\n{''.join(traceback.format_exception(error))}")
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return OSError(f"{type(error).__name__}: {error}")
