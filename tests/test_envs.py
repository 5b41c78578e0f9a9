"""Environments: conda's, Docker's and Apptainer's are made of what the lock pins, and of files that are there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).parents[1]
ENVS = PROJECT / "envs"
LOCK = dict(line.split("==") for line in (PROJECT / "requirements.lock").read_text().split())
CONDA = {path.stem: yaml.safe_load(path.read_text())["dependencies"] for path in ENVS.glob("*.yaml")}


def docker_steps() -> list[tuple[str, str]]:
    lines = (ENVS / "Dockerfile").read_text().splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line[0] != "#")]


def apptainer_part(name: str) -> list[str]:
    """The lines of a section."""
    text = (ENVS / "apptainer.def").read_text()
    return [line.strip() for line in text.partition(f"%{name}\n")[2].partition("\n%")[0].splitlines() if line.strip()]


def test_conda_environments_pin_what_the_lock_pins() -> None:
    assert LOCK["torch"] == "2.13.0" and CONDA.keys() == {"data", "train", "evaluate"}
    for name, dependencies in CONDA.items():
        pins = [pin.split("==") for pin in dependencies[-1]["pip"]]
        assert dict(pins).items() <= LOCK.items(), name
        assert len(dict(pins)) == len(pins)


def test_each_rule_names_an_environment_that_is_there() -> None:
    named = {
        env for path in (PROJECT / "rules").glob("*.smk") for env in re.findall(r'"(\.\./envs/.+)"', path.read_text())
    }
    assert {(PROJECT / "rules" / env).resolve() for env in named} == set(ENVS.glob("*.yaml"))


def test_all_environments_have_one_python() -> None:
    [image] = [rest for word, rest in docker_steps() if word == "FROM"]
    assert f"From: {image}\n" in (ENVS / "apptainer.def").read_text()
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", image)
    assert version and all(dependencies[0] == f"python={version[1]}" for dependencies in CONDA.values())
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == f">={version[1]}"


def test_containers_take_the_same_files_and_run_the_same_commands() -> None:
    copied = {file for word, rest in docker_steps() if word == "COPY" for file in rest.split()[:-1]}
    assert {file: f"/opt/omnitune/{file}" for file in copied} == dict(line.split() for line in apptainer_part("files"))
    assert all((PROJECT / file).exists() for file in copied)
    commands = [rest for word, rest in docker_steps() if word == "RUN"]
    assert commands == [line for line in apptainer_part("post") if not line.startswith("cd ")]
    wanted = re.findall(r"-r (\S+)", " ".join(commands))
    assert wanted == ["requirements.lock"] and set(wanted) <= copied
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied
    assert {word for word, _ in docker_steps()} == {"FROM", "COPY", "WORKDIR", "RUN"}
