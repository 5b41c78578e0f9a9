"""How a training is asked to stop and learns of it: the way of a signal from the job to the process that computes.

1. A scheduler that takes a job's nodes away sends STOP_SIGNALS to the job's steps: to the process that has called
   `processes.run`, or to a launcher itself. That process must live until what it runs has ended.
2. `run` sends each on as SIGUSR1 (`sending_on`) and notes it in `Stops`. On several nodes it runs srun, which sends it
   to `omnitune train` on each of them; there, and on a single node, it runs the launcher, `accelerate launch`.
3. A launcher that died of the signal would take its processes with it. So where FORWARDS_STOP is in its environment the
   signals are blocked before it has any thread (`block_stop_signals`), and a thread of it repeats them to the processes
   (`send_on_to_children`).
4. These inherit the block, and a thread of each waits for the signals (`StopRequest`). Before the first step, when
   there is nothing to save, the process ends with INTERRUPTED, which its launcher passes on as a lost process, and
   which `Stops` tells from one. Later `requested` is set: the processes tell each other after which step they stop,
   save after it and end with 0; what has launched them sees that no result is there and ends with INTERRUPTED. What
   srun has started ends with 0 once more, since srun kills the other nodes for another code, and the job sees it.
5. A SIGTERM of the launcher to its own processes means that another one has died: they end at once, with PEER_LOST.
6. What is killed without a signal that it can see takes along what it has launched (`die_with_parent`).
"""

import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from omnitune.console import INTERRUPTED

logger = logging.getLogger("omnitune")

STOP_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}  # what a preempted or expiring job gets
FORWARDS_STOP = "OMNITUNE_FORWARDS_STOP"  # set where the launched processes know what to do with STOP_SIGNALS
PEER_LOST = 3  # exit code of a launched process: another one is gone


@dataclass
class Stops:
    """Whether STOP_SIGNALS have come: what ends after them was stopped and did not fail."""

    received: bool = False


@contextmanager
def sending_on(process: subprocess.Popen[str], stops: Stops) -> Iterator[None]:
    """While a launcher runs: passes signals on to it, and notes them (step 2)."""

    def send(number: int, frame: object) -> None:
        stops.received = True
        logger.info("%s received: training is asked to save and stop", signal.Signals(number).name)
        process.send_signal(signal.SIGUSR1)  # the one of the two that srun sends on as well

    before = {number: signal.signal(number, send) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def block_stop_signals() -> None:
    """Before any thread of a launcher is there: one that does not block them would die, and all with it (step 3)."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def send_on_to_children() -> None:
    """In a launcher: waits for a stop signal, then repeats it to the launched processes until they have ended (step 3).

    Repeats, as they may not have been started yet; the signal is blocked in them until they ask for it.
    """
    signal.sigwait(STOP_SIGNALS)
    while True:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGUSR1)
        time.sleep(1.0)


class StopRequest:
    """In a launched process: `requested` is set where it was asked to save and stop (steps 4 and 5).

    A thread waits for the signals, so that they are noticed while the main one sits in a collective.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=self._wait, name="stop-signals", daemon=True).start()

    def _wait(self) -> None:
        while True:
            received = signal.sigwaitinfo(STOP_SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
                os._exit(PEER_LOST)
            if not self._deferred:
                os._exit(INTERRUPTED)
            self.requested = True

    def defer(self) -> None:
        """From now on a step is finished and saved first."""
        self._deferred = True


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its launcher dies, so that no orphan goes on writing."""
    if os.name == "posix" and hasattr(signal, "SIGKILL"):
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        except (OSError, AttributeError):  # not Linux: the launcher's own clean-up must do
            return
