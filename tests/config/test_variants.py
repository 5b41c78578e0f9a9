"""Options that build on others: files that extend others, and the variants of a sweep."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.projects import changed, write
from omnitune.config import ExperimentOptions
from omnitune.config.experiment.variants import variant_name
from omnitune.errors import ConfigError
from omnitune.paths import BASE, EvaluatedStep
from omnitune.project import Project

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("mix.yml"), {"data": [{"path": "a.jsonl"}]})


def options(path: str, content: dict[str, Any]) -> Path:
    return write(Path(path), content)


def swept(keys: dict[str, list[Any]], **others: Any) -> Project:
    return Project.load({"sweep": {"options": "base.yml", "set": keys}, **others})


def test_a_file_takes_what_it_lacks_from_the_one_that_it_extends() -> None:
    """Section by section, lists as a whole, and over several files; paths count from the file that names them."""
    options(
        "shared/common.yml", {"train": {"warmup_t": 3, "learning_rate": 0.5}, "data": {"max_input_pixels": [512, 256]}}
    )
    options("mine.yml", {"extends": "shared/common.yml", **changed(name="mine", train={"learning_rate": 0.25})})
    variant = {"extends": "../mine.yml", "name": "variant", "data": {"max_input_pixels": [1024]}, "seed": 3}
    found = ExperimentOptions.load(options("more/variant.yml", variant))
    assert (found.name, found.seed, found.extends) == ("variant", 3, None)
    assert (found.train.warmup_t, found.train.learning_rate) == (3, 0.25)
    assert (found.data.max_input_pixels, found.data.data_path) == ([1024], "mix.yml")
    kept = options("kept.yml", found.model_dump(mode="json"))
    assert ExperimentOptions.load(kept) == found, "what is kept is whole by itself"


def test_a_section_may_be_set_to_null() -> None:
    options("base.yml", changed(train={"lora_ft": True, "lora_target_modules": ["to_q"]}))
    variant = options("v.yml", {"extends": "base.yml", "name": "v", "train": {"lora_target_modules": None}})
    assert ExperimentOptions.load(variant).train.lora_target_modules is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"extends": "missing.yml"}, r"v\.yml: extends: 'missing\.yml' leads to missing\.yml, which is no file"),
        ({"extends": ["base.yml"]}, r"v\.yml: extends: \['base\.yml'\] is not allowed: needs the path of one"),
        ({"extends": "./v.yml"}, r"v\.yml: extends: files extend each other in a circle: v\.yml -> v\.yml\. Take one"),
        ({"extends": "0.yml"}, r"v\.yml: extends: leads through more than 32 files"),
        ({"extends": "back.yml"}, r"back\.yml: extends: .*circle: v\.yml -> back\.yml -> v\.yml"),
        ({"extends": "base.yml"}, r"v\.yml: 1 problem\n  - name: is required and missing"),
        ({"extends": "wrong.yml", "name": "v"}, r"train\.lerning_rate: unknown key\. .* It stands in wrong\.yml"),
        ({"extends": "base.yml", "name": "v", "train": {"sed": 1}}, r"train\.sed: unknown key\. [^I]*$"),
    ],
)
def test_mistakes_name_the_file_that_they_stand_in(content: dict[str, Any], message: str) -> None:
    options("base.yml", changed())
    options("wrong.yml", changed(train={"lerning_rate": 0.5}))
    options("back.yml", {"extends": "v.yml"})
    for number in range(33):
        options(f"{number}.yml", {"extends": f"{number + 1}.yml"})
    with pytest.raises(ConfigError, match=message):
        ExperimentOptions.load(options("v.yml", content))


def test_a_sweep_makes_experiments_with_names_that_can_be_read() -> None:
    options("base.yml", changed(train={"max_train_steps": 10}))
    text = "sweep: {options: base.yml, set: {train.learning_rate: [1e-5, 3.0e-5, 1], train.lora_ft: [true, false]}}"
    found = Project.load(yaml.safe_load(text))
    assert found.swept == "x"
    assert (
        list(found.experiments)
        == list(found.variants)
        == [
            "x-learning_rate-1e-05-lora_ft-true",
            "x-learning_rate-1e-05-lora_ft-false",
            "x-learning_rate-3e-05-lora_ft-true",
            "x-learning_rate-3e-05-lora_ft-false",
            "x-learning_rate-1-lora_ft-true",
            "x-learning_rate-1-lora_ft-false",
        ]
    )
    name = "x-learning_rate-3e-05-lora_ft-true"
    variant = found.experiments[name]
    assert (variant.name, variant.train.learning_rate, variant.train.lora_ft) == (name, 3e-5, True)
    assert variant.train.max_train_steps == 10
    assert found.variants[name] == {"train.learning_rate": 3e-5, "train.lora_ft": True}
    assert found.options_files[name] == Path("base.yml")


def test_reports_compare_experiments_by_the_keys_in_which_they_differ() -> None:
    files = [
        str(options(f"{name}.yml", changed(name=name, train={"max_train_steps": 10 * k})))
        for k, name in ((1, "a"), (2, "b"))
    ]
    found = Project.load({"experiments": files, "reports": {"both": ["a", "b"]}})
    assert found.comparisons == {"both": {"a": {"train.max_train_steps": 10}, "b": {"train.max_train_steps": 20}}}
    for reports, problem in (
        ({"both": ["a", "c"]}, r"reports\.both: no experiment is named 'c'; known: a, b\."),
        ({"both": ["a", "a"]}, "an experiment stands there twice"),
        ({"a": ["a", "b"]}, "has this name already"),
        ({"x/y": ["a", "b"]}, "names a folder"),
        ({"both": ["a"]}, "both"),
    ):
        with pytest.raises(ConfigError, match=problem):
            Project.load({"experiments": files, "reports": reports})


def test_values_of_any_kind_have_a_name() -> None:
    keys = {"train.lora_path": "my/adapter", "val.x": 1.0, "train.x": [{"pattern": "a.*"}, None], "seed": -0.1234567891}
    assert variant_name("x", keys) == "x-lora_path-my_adapter-val.x-1-train.x-pattern_a.__null-seed--0.1234567891"


def test_variants_share_data_and_the_evaluation_of_their_base() -> None:
    options("base.yml", changed(train={"max_train_steps": 10}))
    write(Path("b.yml"), {"prompts": "resources/demo/heldout/edit.jsonl"})
    found = swept({"train.learning_rate": [1e-4, 1e-5]}, benchmarks=["b.yml"])
    assert list(found.sources) == ["mix"]
    first, second = "x-learning_rate-0.0001", "x-learning_rate-1e-05"
    for name in (first, second):
        assert found.evaluations(name) == {BASE: (first, BASE), EvaluatedStep(10): (name, EvaluatedStep(10))}
    both = swept({"train.learning_rate": [1e-4, 1e-5]}, experiments=["base.yml"])
    assert {both.evaluations(name)[BASE] for name in both.experiments} == {("x", BASE)}
    other = changed(name="a", model={"pretrained_model_path": "owner/other"}, data={"data_path": "other.yml"})
    options("other.yml", {"data": [{"path": "b.jsonl"}]})
    apart = swept({"seed": [1]}, experiments=[str(options("a.yml", other))])
    assert apart.evaluations("a")[BASE] == ("a", BASE) and apart.evaluations("x-seed-1")[BASE] == ("x-seed-1", BASE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.lerning_rate": [1]}, r"config\.yaml: sweep: 1 problem\n  - train\.lerning_rate: .*'learning_rate'\?$"),
        ({"learning_rate": [1]}, r"  - learning_rate: unknown key\. Did you mean 'train\.learning_rate'\?$"),
        ({"train.learning_rate": [1, -1]}, r"config\.yaml: sweep: 1 problem\n  - train\.learning_rate: -1 is not"),
        ({"train.learning_rate": []}, r"sweep\.set\.train\.learning_rate: \[\] is not allowed: list should have at"),
        (
            {"train.learning_rate": 1},
            r"sweep\.set\.train\.learning_rate: 1 is not allowed: input should be a valid list",
        ),
        ({}, r"sweep\.set: \{\} is not allowed"),
        ({"name": ["a"]}, r"sweep\.set\.name: is not allowed; the names of variants follow"),
        ({"seed": [1, 2, 1]}, r"sweep\.set: two of its values come to the name 'x-seed-1'"),
        ({"train.lora_path": ["a" * 200], "train.lora_ft": [True]}, r"more than 150 letters in the name"),
        ({"seed": list(range(50)), "train.warmup_t": list(range(50))}, r"makes 2500 experiments of base\.yml; at most"),
        ({"data.max_side_length": [512, 1024]}, r"share the data set 'mix'.*max_side_length: 512 and 1024"),
    ],
)
def test_mistakes_in_a_sweep(keys: dict[str, list[Any]], message: str) -> None:
    options("base.yml", changed())
    with pytest.raises(ConfigError, match=message):
        swept(keys)


def test_something_is_to_be_run() -> None:
    with pytest.raises(ConfigError, match="names nothing to run; name an options file, or set a sweep"):
        Project.load({"benchmarks": []})
    options("base.yml", changed())
    with pytest.raises(ConfigError, match="'x-seed-1' is also the name in"):
        swept({"seed": [1]}, experiments=[str(options("x.yml", changed(name="x-seed-1")))])
