"""What a check has found."""

import subprocess
from dataclasses import dataclass
from typing import Literal

ANSWER_SECONDS = 20  # that a program may take to answer


@dataclass(frozen=True)
class Finding:
    """One line for a person.

    Attributes:
        level: ok; note, which a person should know of; problem, with which jobs will fail.
        about: what was looked at.
        text: what was found, and of a problem what mends it.
    """

    level: Literal["ok", "note", "problem"]
    about: str
    text: str


def answer_of(*command: str, seconds: float = ANSWER_SECONDS) -> str | None:
    """What a program prints; None where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
