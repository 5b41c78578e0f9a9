"""The shipped transformer is what its record says, and the script that made it still trains as it did."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnitune.demo.base_model import WEIGHTS, build_base_model
from omnitune.demo.train_transformer import rehearse
from omnitune.io.files import sha256_of

pytestmark = pytest.mark.unit

RECORD: dict[str, Any] = json.loads(WEIGHTS.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "demo"
    build_base_model(folder)
    return folder


def test_the_record_is_of_the_shipped_weights() -> None:
    assert sha256_of(WEIGHTS) == RECORD["sha256"]
    assert WEIGHTS.stat().st_size <= 8_000_000
    for part in ("choosing_without_guidance", "heldout"):
        passed = {task: values["passed"] for task, values in RECORD[part].items()}
        assert passed["t2i"] >= 0.9 and passed["edit"] >= 0.85 and passed["in_context"] >= 0.7
        assert passed["star"] <= 0.1 and passed["background"] <= 0.1


@pytest.mark.slow
def test_training_goes_as_recorded(base: Path) -> None:
    losses, recorded = rehearse(base), RECORD["rehearsal"]
    np.testing.assert_allclose(losses, recorded, rtol=0.02)
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
