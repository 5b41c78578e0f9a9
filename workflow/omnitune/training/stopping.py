"""A training that is asked to stop: by a signal to its job, or since another of its processes has died."""

import os
import signal
import threading

from omnitune.console import INTERRUPTED
from omnitune.launcher import PEER_LOST, STOP_SIGNALS


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
