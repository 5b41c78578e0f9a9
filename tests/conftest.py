"""Projects to run in: fresh copies, and copies of one finished run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_tiny
from workplace import Workplace, copy_project


@pytest.fixture(scope="session")
def new_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Makes a fresh copy of the project."""
    return lambda name: copy_project(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def finished(new_workplace: Callable[[str], Workplace]) -> Workplace:
    """The small experiment after `snakemake --cores 2`. Not to be changed: use `workplace`."""
    place = new_workplace("finished")
    write_tiny(place.root)
    place.snakemake()
    return place


@pytest.fixture
def workplace(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the finished run."""
    return finished.copy_to(tmp_path / "project")
