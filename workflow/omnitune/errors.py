"""Faults of input: mistakes of the user's and verdicts on data; what a library's exception says; text of strangers."""

import sys
import unicodedata


class ConfigError(ValueError):
    """A user's mistake in a configuration file; its text names file, key, value and what is allowed."""


class Refused(ValueError):  # noqa: N818  (a verdict on the data, not a fault of the program)
    """A sample that cannot be trained on: a short reason code, and a message that says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def reason_of(error: BaseException) -> str:
    """The first line of an exception's message; of torch's CheckpointException what each process met."""
    checkpointing = sys.modules.get("torch.distributed.checkpoint.api")  # not imported here, which would take seconds
    if checkpointing and isinstance(error, checkpointing.CheckpointException):
        return "; ".join(str(failure[0]) for failure in error.failures.values())
    return (str(error) or type(error).__name__).splitlines()[0]


def shown(value: str) -> str:
    """A value as messages quote it: cut, as a line may be a million characters."""
    return repr(cut(value))


def cut(value: str, limit: int = 80) -> str:
    """The first so many characters of a text, which is marked where there are more."""
    return value if len(value) <= limit else f"{value[:limit]}.."


def printable(text: str) -> str:
    """A text with escapes for what a terminal would act on or could not write; ends of lines and tabs stay.

    Joiners stay, too, which some scripts and pictures need.
    """
    if text.isprintable():
        return text
    return "".join(repr(sign)[1:-1] if _acts(sign) else sign for sign in text)


def _acts(sign: str) -> bool:
    return unicodedata.category(sign) in {"Cc", "Cf", "Cs"} and sign not in "\n\t\u200c\u200d"
