"""Files of the config that do not go together: names that two have, folders that two would fill otherwise."""

from pathlib import Path

import pytest

from helpers.projects import changed, project, write
from omnitune.errors import ConfigError
from omnitune.project import Project

pytestmark = pytest.mark.unit


def test_experiments_that_share_a_data_set_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"share the data set 'mix'.*max_side_length: 2048 and 512"):
        project(tmp_path, changed(name="a"), changed(name="b", data={"max_side_length": 512}))
    with pytest.raises(ConfigError, match="is also the name in"):
        project(tmp_path, changed(name="a"), changed(name="a"))


def test_benchmarks_and_experiments_need_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [str(write(tmp_path / folder / "b.yml", {"prompts": "p.jsonl"})) for folder in ("one", "two")]
    options = str(write(tmp_path / "x.yml", changed()))
    with pytest.raises(ConfigError, match="two files are called 'b'"):
        Project.load({"experiments": [options], "benchmarks": files})


def test_two_base_models_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = changed(name="one", model={"pretrained_model_path": "foo/bar"})
    two = changed(name="two", model={"pretrained_model_path": "foo--bar"})
    with pytest.raises(
        ConfigError, match=r"1\.yml: its base model would be resources/pretrained/foo--bar, and so would"
    ):
        project(tmp_path, one, two)


@pytest.mark.parametrize(
    ("baselines", "said"),
    [
        ({"base": "m"}, "baselines: 'base' is not allowed as a name"),
        ({"../x": "m"}, r"baselines: '\.\./x' is not allowed as a name"),
        (
            {"x": "experiments/x/checkpoint-4000/transformer"},
            "which this config trains. Compare experiments by `reports`",
        ),
        ({"x": "./resources/../resources/pretrained/demo/transformer"}, "is the base of 'x', which this workflow prep"),
    ],
)
def test_baselines_that_cannot_be_are_refused(
    baselines: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "b.yml", {"prompts": "p.jsonl", "baselines": baselines})
    write(tmp_path / "mix.yml", {"data": [{"path": "a.jsonl"}]})
    with pytest.raises(ConfigError, match=said):
        Project.load({"experiments": [str(write(tmp_path / "x.yml", changed()))], "benchmarks": [str(file)]})


def test_a_judge_runs_here_or_behind_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers have one folder, and its jobs one rule."""
    monkeypatch.chdir(tmp_path)
    here, there = {"name": "j", "model": "m"}, {"name": "j", "model": "m", "base_url": "http://x/v1"}
    write(tmp_path / "mix.yml", {"data": [{"path": "a.jsonl"}]})
    options = str(write(tmp_path / "x.yml", changed()))

    def load(*judges: dict[str, str]) -> None:
        files = [
            str(write(tmp_path / f"b{number}.yml", {"prompts": "p.jsonl", "judges": [judge]}))
            for number, judge in enumerate(judges)
        ]
        Project.load({"experiments": [options], "benchmarks": files})

    load(here, here)
    load(there, there)
    with pytest.raises(ConfigError, match=r"benchmarks 'b0' and 'b1': judges: 'j' has a base_url in one of them alone"):
        load(here, there)


def test_names_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config/data/mix{v}.yml", "data: []")
    with pytest.raises(
        ConfigError, match=r"data_path: '.*mix\{v\}\.yml' is not allowed: .* names folders; take letters"
    ):
        project(tmp_path, changed(data={"data_path": "config/data/mix{v}.yml"}))
