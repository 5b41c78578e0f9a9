"""How a training is asked to stop and learns of it, from the job's signal to the process that computes.

A scheduler that takes a job's nodes away sends STOP_SIGNALS to the job's steps: to the process that has called `run`, or to the
launcher itself. `sending_on` passes them from there to the launcher, `send_on_to_children` from the launcher to the launched
processes, and in each of these a `StopRequest` waits for them. All between block them, as a process that does not would die.
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
    """Whether STOP_SIGNALS have come, which `run` then sends on to what it runs."""

    received: bool = False


@contextmanager
def sending_on(process: subprocess.Popen[str], stops: Stops) -> Iterator[None]:
    """While a launcher runs: passes signals on to it, and notes them."""

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
    """Before any thread of the launcher is there: one that does not block them would die of them, and all with it."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def send_on_to_children() -> None:
    """Waits for a stop signal, then repeats it to the launched processes until they have ended.

    Repeats, as they may not have been started yet; the signal is blocked in them until they ask for it.
    """
    signal.sigwait(STOP_SIGNALS)
    while True:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGUSR1)
        time.sleep(1.0)


class StopRequest:
    """Set by SIGTERM or SIGUSR1, what a preempted or expiring job gets: the training saves after its step and ends.

    A thread waits for the signals, so that they are noticed while the main one sits in a collective; the launcher has blocked
    them before this process had any thread. A SIGTERM of the launcher itself means that another process has died: there is
    nothing to wait for then, and this one ends at once. So it does before its first step, when there is nothing to save.
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
