"""CPU memory that jobs ask for follows the size of the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnitune.planning.host import LIBRARIES_MB, host_memory_mb

pytestmark = pytest.mark.unit


def test_memory_is_that_of_the_weights_in_each_process(tmp_path: Path) -> None:
    for part, numbers in (("transformer", 3_000_000), ("vae", 1_000_000)):
        (tmp_path / part).mkdir()
        save_file({"a": torch.zeros(numbers, dtype=torch.bfloat16)}, tmp_path / part / "x.safetensors")
    folders = [tmp_path / "transformer", tmp_path / "vae", tmp_path / "not_yet"]
    assert host_memory_mb(folders, 4) == LIBRARIES_MB + 16
    assert host_memory_mb(folders[:1], 16, processes=8, least=8000) == 8000 + 8 * 48
    assert host_memory_mb(folders[2:], 4) == LIBRARIES_MB
