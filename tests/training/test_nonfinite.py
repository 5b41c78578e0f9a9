"""Steps whose loss or gradients are not finite."""

import pytest

from omnitune.distributed.parallel import SharedError
from omnitune.training.nonfinite import NonFinite

pytestmark = pytest.mark.unit


def test_too_many_steps_that_are_not_finite() -> None:
    counter = NonFinite(limit=2)
    for step in (1, 2):
        counter.skipped(step, float("nan"), 1.0, 0.1)
    counter.finite()
    for step in (4, 5):
        counter.skipped(step, float("nan"), 1.0, 0.1)
    with pytest.raises(SharedError, match=r"step 6: .* the 3\. step in a row .*train\.max_nonfinite_steps: 2"):
        counter.skipped(6, float("nan"), 1.0, 0.1)
    assert counter.state() == {"nonfinite_in_row": 3, "skipped_steps": 5}
