"""What the workflow's targets wait for: each thing once, however many experiments lead to it."""

from pathlib import Path

import pytest

from helpers.projects import changed, project, write
from omnitune import targets
from omnitune.paths import BASE, EvaluatedStep
from omnitune.project import Phase, Project

pytestmark = pytest.mark.unit


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Two experiments, of which the second starts from what the first is evaluated at, and two benchmarks."""
    monkeypatch.chdir(tmp_path)
    train = {"max_train_steps": 10}
    start = {"pretrained_model_path": "experiments/first/checkpoint-10/transformer"}
    both = {"formats": ["diffusers", "comfyui"]}
    first = changed(name="first", train=train, data={"encode": True}, convert=both)
    return project(tmp_path, changed(name="second", train=train, model=start), first, benchmarks=("b1", "b2"))


def test_evaluations_that_two_share_are_waited_for_once(two: Project) -> None:
    last = EvaluatedStep(10)
    evaluations = [("first", BASE), ("first", last), ("second", last)]
    chains = targets.scored(two, two.experiments)
    assert chains == [two.scored(*found, name) for found in evaluations for name in ("b1", "b2")]
    assert [chain[-1]["experiment"] for chain in targets.scored(two, ["second"])] == ["first"] * 2 + ["second"] * 2


def test_each_format_is_converted_to(two: Project) -> None:
    found = {(chain[-1]["experiment"], chain[-1]["weights"]) for chain in targets.converted(two)}
    assert found == {("first", "transformer"), ("first", "transformer_comfyui"), ("second", "transformer")}


def test_encodings_are_those_that_are_trained_on(two: Project) -> None:
    assert targets.encoded(two) == [("mix", "demo")]


def test_layouts_are_of_benchmarks_that_ask_for_them(two: Project, tmp_path: Path) -> None:
    assert targets.exported(two, two.experiments) == []
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg/1.txt").write_text("a prompt")
    official = write(tmp_path / "asked.yml", {"prompts": "dpg", "format": "dpg", "export": "official"})
    files = list(map(str, two.options_files.values()))
    asked = Project.load({"experiments": files, "benchmarks": ["b1.yml", str(official)]})
    assert targets.exported(asked, asked.experiments) == [
        "experiments/first/evaluation/0/asked/official",
        "experiments/first/evaluation/10/asked/official",
        "experiments/second/evaluation/10/asked/official",
    ]


def test_demo_data_is_drawn_where_something_is_read_from_it(tmp_path: Path, two: Project) -> None:
    demo = (Phase.of("prepare_demo_data"),)
    assert targets.drawn(two) == [demo], "the benchmarks' prompts are the demo's"
    assert targets.drawn(project(tmp_path, changed())) == []
    assert targets.drawn(project(tmp_path, changed(val={"data_path": "resources/demo/heldout/star.jsonl"}))) == [demo]
    write(tmp_path / "mix.yml", {"data": [{"path": "resources/demo/edit.jsonl"}]})
    assert targets.drawn(project(tmp_path, changed())) == [demo]
