"""A tiny pipeline and prompts for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pipelines import build_pipeline
from omnitune.evaluation.generate import load_pipeline
from omnitune.evaluation.prompts import Prompt
from omnitune.models import OmniGen2Pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(base: Path) -> OmniGen2Pipeline:
    return load_pipeline(base, dtype="fp32", device="cpu")


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    rng = np.random.default_rng(0)
    for name, size in (("in", (48, 32)), ("out", (48, 32)), ("square", (32, 32))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return [
        Prompt("edit-1", "edit", "make the circle red.", (tmp_path / "in.png",), tmp_path / "out.png"),
        Prompt("t2i-1", "t2i", "a red circle.", (), tmp_path / "square.png"),
        Prompt("t2i-2", "t2i", "a blue square at the left."),
    ]
