"""Projects to run in, fresh copies and copies of one finished run; and an S3 service."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.lab import draw_images, first_lab, write_lab
from helpers.tiny import write_tiny
from helpers.trainings import prepare_mixed
from helpers.workplace import Workplace, copy_project

SharedRun = Callable[[str, Callable[[Workplace], None]], Workplace]


@pytest.fixture(scope="session")
def new_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Makes a fresh copy of the project."""
    return lambda name: copy_project(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    """Makes a place once for all processes of this test run: the first one that asks does, the others wait."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run(name: str, make: Callable[[Workplace], None]) -> Workplace:
        place, done = Workplace(common / name), common / f"{name}.done"
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(place.root, ignore_errors=True)
                place.root.mkdir()
                copy_project(place.root)
                make(place)
                done.touch()
        return place

    return run


@pytest.fixture(scope="session")
def finished(shared_run: SharedRun) -> Workplace:
    """The small experiment after `snakemake --cores 2`. Not to be changed: use `workplace`."""

    def make(place: Workplace) -> None:
        write_tiny(place.root)
        place.snakemake()

    return shared_run("finished", make)


@pytest.fixture(scope="session")
def lab_run(shared_run: SharedRun) -> Workplace:
    """The lab after `snakemake --cores 2`. Not to be changed: copy it."""

    def make(place: Workplace) -> None:
        shutil.rmtree(place.root / "config")
        write_lab(first_lab(), place.root)
        draw_images(place.root)
        place.snakemake()

    return shared_run("lab", make)


@pytest.fixture
def workplace(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the finished run."""
    return finished.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def mixed(finished: Workplace, tmp_path_factory: pytest.TempPathFactory, shared_run: SharedRun) -> Workplace:
    """The finished run, and shards and encodings of all three tasks: where tests start trainings of their own names."""

    def make(place: Workplace) -> None:
        shutil.rmtree(place.root)
        finished.copy_to(place.root)
        prepare_mixed(place)

    prepared = shared_run("mixed", make)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return prepared
    return prepared.copy_to(tmp_path_factory.mktemp("mixed") / "project")  # each process writes trainings of its own


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an empty bucket of an S3-compatible service that runs for the session; credentials in the environment."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.filesystem("s3").mkdir("omnitune-tests")
        yield "s3://omnitune-tests"
    server.stop()
