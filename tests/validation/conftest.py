"""A folder with a good picture."""

from pathlib import Path

import pytest

from helpers.pictures import encoded
from helpers.samples import noisy_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(encoded(noisy_picture()))
    (tmp_path / "folder.png").mkdir()
    return tmp_path
