"""Which weights of an experiment are evaluated: the base, a step's, or their average."""

import re
from typing import NamedTuple, Self


class EvaluatedStep(NamedTuple):
    """Weights to convert and evaluate; sorted, the base comes first and an average after the weights of its step.

    Attributes:
        number: optimizer steps; 0 is what the experiment started from.
        ema: the average of the weights (train.ema_decay) in their place.
    """

    number: int
    ema: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of str(); ValueError for any other text."""
        match = re.fullmatch(r"(\d+)(-ema)?", text)
        if match is None:
            raise ValueError(f"step {text!r} is not allowed: needs a number of steps, as in 500, or 500-ema.")
        return cls(int(match[1]), match[2] is not None)

    def __str__(self) -> str:
        """Name of the folder in evaluation/."""
        return f"{self.number}-ema" if self.ema else str(self.number)

    @property
    def label(self) -> str:
        """For people."""
        if not self.number:
            return "base"
        return f"step {self.number} (EMA)" if self.ema else f"step {self.number}"


BASE = EvaluatedStep(0)
