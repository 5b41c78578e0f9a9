"""How a launched process takes the signals that ask it to stop."""

import signal
import subprocess
import sys
import time

import pytest

from omnitune.distributed.stopping import STOP_SIGNALS

pytestmark = pytest.mark.unit

STOPPING = """
import sys, time
from omnitune.distributed.stopping import StopRequest
stop = StopRequest()
if sys.argv[1:]:
    stop.defer()
print("ready", flush=True)
while not stop.requested:
    time.sleep(0.01)
print("asked", flush=True)
sys.exit(0)
"""


def start_waiting(in_step: bool = True) -> subprocess.Popen[str]:
    """A process that was started as the launcher starts one: with the signals blocked from its first thread on."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *(["in a step"] if in_step else [])],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signals_set_a_flag(number: signal.Signals) -> None:
    """From anybody but the launcher, whose SIGTERM means that a process has died."""
    process = start_waiting()
    assert process.stdout is not None
    other = ["-c", f"import os; os.kill({process.pid}, {int(number)})"]
    subprocess.run([sys.executable, *other], check=True)
    assert process.stdout.readline() == "asked\n"
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_stop_before_the_first_step_ends_at_once() -> None:
    process = start_waiting(in_step=False)
    assert process.stdout is not None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 75
    process.stdout.close()


def test_sigterm_of_the_launcher_ends_at_once() -> None:
    process = start_waiting()
    assert process.stdout is not None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 3
    assert time.monotonic() - began < 5
    process.stdout.close()
