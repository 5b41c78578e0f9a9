"""Projects to run in, fresh copies and copies of one finished run; and an S3 service."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import draw_images, first_lab, write_lab
from tiny import write_tiny
from trainings import prepare_mixed
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


@pytest.fixture(scope="session")
def lab_run(new_workplace: Callable[[str], Workplace]) -> Workplace:
    """The lab after `snakemake --cores 2`. Not to be changed: copy it."""
    place = new_workplace("lab")
    shutil.rmtree(place.root / "config")
    write_lab(first_lab(), place.root)
    draw_images(place.root)
    place.snakemake()
    return place


@pytest.fixture
def workplace(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the finished run."""
    return finished.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def mixed(finished: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The finished run, and shards and encodings of all three tasks: where tests start trainings of their own names."""
    place = finished.copy_to(tmp_path_factory.mktemp("mixed") / "project")
    prepare_mixed(place)
    return place


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an empty bucket of an S3-compatible service, which runs for the session; credentials in the environment."""
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
