"""Steps whose loss or gradients are not finite: skipped, counted, and named by their samples."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from omnitune.distributed.parallel import SharedError, gather
from omnitune.training.flow_matching import Conditioned

logger = logging.getLogger("omnitune")

SHOWN_KEYS = 20


class NonFinite:
    """Counts skipped steps and ends a training that skips too many in a row; the same on every process.

    Args:
        limit: train.max_nonfinite_steps.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_row = 0
        self.total = 0
        self._seen: list[tuple[list[str], Tensor]] = []

    def start_step(self) -> None:
        """Before the forwards of a step."""
        self._seen.clear()

    def note(self, samples: Sequence[Conditioned], errors: Tensor) -> None:
        """Remembers the samples of this step with their squared errors [B], which may still be computed."""
        self._seen.append(([sample.key for sample in samples], errors))

    def finite(self) -> None:
        """After a step that was taken."""
        self.in_row = 0

    def overflowed(self) -> None:
        """After a step that was skipped since float16 overflowed at this scale of the loss; that is no divergence."""
        self.total += 1

    def skipped(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """After a step that was skipped; every process calls it. Raises SharedError past the limit."""
        self.in_row += 1
        self.total += 1
        logger.warning(
            "step %d is skipped (%d in a row): loss %s, gradient norm %s. %s",
            step,
            self.in_row,
            loss,
            grad_norm,
            self._named(),
        )
        if self.in_row > self.limit:
            raise SharedError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}, the {self.in_row}. step in a row that is not "
                f"finite (train.max_nonfinite_steps: {self.limit}). The training diverged and stops; its earlier "
                f"checkpoints are whole. Lower train.learning_rate (now {learning_rate:g}) or train.max_grad_norm, or "
                "look at the samples."
            )

    def _named(self) -> str:
        """The samples whose own errors are not finite, of all processes; all of the step where none is."""
        own = [
            (key, bool(error.isfinite()))
            for keys, errors in self._seen
            for key, error in zip(keys, errors, strict=True)
        ]
        found = [entry for entries in gather(own) for entry in entries]
        guilty = [key for key, finite in found if not finite]
        keys = sorted(set(guilty or [key for key, _ in found]))
        more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
        which = "Samples with such a loss" if guilty else "Its samples"
        return f"{which}: {', '.join(keys[:SHOWN_KEYS])}{more}."

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"nonfinite_in_row": self.in_row, "skipped_steps": self.total}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.in_row, self.total = state.get("nonfinite_in_row", 0), state.get("skipped_steps", 0)
