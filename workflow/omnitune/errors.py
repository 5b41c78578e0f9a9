"""Faults of input: a mistake of the user's, and a verdict on a piece of data."""


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
