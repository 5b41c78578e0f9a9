"""Which trainings a run would refuse, from the config and the user's files alone, before anything of it is done."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.projects import changed, project, write, write_shards
from omnitune.checkpoints.identity import identity_of
from omnitune.checkpoints.states import TrainerState
from omnitune.paths import STATE_FILE
from omnitune.refusals import refused_trainings, stretched_schedules

pytestmark = pytest.mark.unit

VALIDATED, LATER = 1_000_000_000, 1_000_000_100  # times of change, in seconds
SHORT = {"max_train_steps": 10}
OVER = {"resume_from_checkpoint": None}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources, validated and sharded, and a base model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    mix(a=1, b=3)
    rows(a=3, b=2, at=VALIDATED - 100)
    validated(a=3, b=2)
    write_shards(Path("prepared/mix/shards/index.parquet"), {"a": "abc", "b": "xy"})
    write(Path("resources/pretrained/demo/manifest.json"), json.dumps({"transformer/model.safetensors": "0"}))
    write(Path("resources/pretrained/demo/transformer/model.safetensors"), "weights")


def mix(**ratios: float) -> None:
    entries = [{"path": f"{name}.jsonl", "ratio": ratio} for name, ratio in ratios.items()]
    write(Path("mix.yml"), {"data": entries})


def rows(at: int = LATER, text: str = "{}\n", **counts: int) -> None:
    """Sources of so many rows, changed at this time."""
    for name, count in counts.items():
        os.utime(write(Path(f"{name}.jsonl"), text * count), (at, at))


def validated(**counts: int) -> None:
    for name, count in counts.items():
        path = write(Path(f"prepared/mix/validation/sources/{name}/summary.json"), json.dumps({"rows": count}))
        os.utime(path, (VALIDATED, VALIDATED))


def trained(*contents: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
    """Gives each experiment checkpoints of what its training is a function of now, or what `change` makes of that."""
    loaded = project(Path(), *contents)
    for name, options in loaded.experiments.items():
        start = loaded.starts[name]
        identity = identity_of(options, start.base, start.transformer, Path("prepared/mix/shards/index.parquet"))
        for step in (5, 10):
            path = Path(f"experiments/{name}/checkpoint-{step}") / STATE_FILE
            state = TrainerState(step, change(identity) if change else identity, None)
            write(path, json.dumps(vars(state)))


def refused(*contents: dict[str, Any]) -> dict[str, str]:
    return refused_trainings(project(Path(), *contents))


def reasons(*contents: dict[str, Any]) -> list[str]:
    """What is said to differ of the only experiment; nothing where it is not refused."""
    messages = refused(*contents).values()
    return [line[4:] for message in messages for line in message.splitlines()[1:] if line.startswith("  - ")][:-2]


def test_an_unchanged_training_is_not_refused() -> None:
    trained(changed())
    assert refused(changed()) == {}
    same = changed(
        data={"samples_per_shard": 7, "max_reject_fraction": 0.5},
        train={"max_train_steps": 50, "batch_size": 1},
        logger={"checkpointing_steps": 3},
        val={"evaluate_checkpoints": "all"},
    )
    assert refused(same) == {}
    mix(b=3, a=1)
    assert refused(changed()) == {}
    mix(a=2, b=6)
    assert refused(changed()) == {}


def test_an_experiment_without_checkpoints_is_not_refused() -> None:
    mix(a=1)
    rows(a=5)
    assert refused(changed(seed=3)) == {}
    write(Path("experiments/x/checkpoint-5.tmp") / STATE_FILE, "{}")
    write(Path("experiments/x/train.json"), "{}")
    assert refused(changed(seed=3)) == {}


def test_a_changed_key_is_named() -> None:
    trained(changed())
    other = changed(seed=3, train={"learning_rate": 0.5}, data={"max_output_pixels": 4096, "image_quality": 90})
    assert reasons(other) == [
        "data.image_quality: 95 -> 90",
        "data.max_output_pixels: 1048576 -> 4096",
        "seed: 2233 -> 3",
        "train.learning_rate: 8e-07 -> 0.5",
    ]


def test_the_message_names_file_keys_and_three_ways_out() -> None:
    trained(changed())
    message = refused(changed(seed=3))["x"]
    for part in (
        "experiments/x: was trained otherwise than 0.yml now asks for. Nothing was run",
        "\n  - seed: 2233 -> 3\n",
        "\nUndo this and there is nothing to do.",
        "set resume_from_checkpoint: null in 0.yml; the old checkpoints are then kept in experiments/x/superseded-1\n",
        "\n    name: x_2\n    model: {pretrained_model_path: experiments/x/checkpoint-10/transformer}",
    ):
        assert part in message


def test_another_mixture_is_refused() -> None:
    trained(changed())
    mix(a=1, b=1)
    assert reasons(changed()) == ["a: ratio 0.25 -> 0.5", "b: ratio 0.75 -> 0.5"]
    rows(c=4)
    mix(a=1, b=3, c=4)
    assert reasons(changed()) == ["a: ratio 0.25 -> 0.125", "b: ratio 0.75 -> 0.375", "c: new in the mixture"]
    mix(b=1)
    assert reasons(changed()) == ["a: no longer in the mixture", "b: ratio 0.75 -> 1"]


@pytest.mark.parametrize(("count", "line"), [(5, "a: 3 -> 5 rows"), (2, "a: 3 -> 2 rows"), (0, "a: 3 -> 0 rows")])
def test_appended_and_removed_rows_are_counted(count: int, line: str) -> None:
    trained(changed())
    rows(a=count)
    assert reasons(changed()) == [line]


def test_rows_of_several_files_are_counted_together() -> None:
    write(Path("mix.yml"), {"data": [{"path": "many"}]})
    for name, count in (("one", 2), ("two", 3)):
        os.utime(write(Path(f"many/{name}.jsonl"), "{}\n" * count), (VALIDATED - 100, VALIDATED - 100))
    validated(many=5)
    write_shards(Path("prepared/mix/shards/index.parquet"), {"many": "abcde"})
    trained(changed())
    assert refused(changed()) == {}
    write(Path("many/two.jsonl"), "{}\n{}\n{}\n{}")
    assert reasons(changed()) == ["many: 5 -> 6 rows"]


def test_a_touched_file_and_blank_lines_are_no_change() -> None:
    trained(changed())
    rows(a=3)
    assert refused(changed()) == {}
    rows(a=3, text="{}\n\n  \n")
    assert refused(changed()) == {}
    Path("a.jsonl").write_text("{}\r\n{}\n\n{}")
    assert refused(changed()) == {}


def test_older_files_are_not_read() -> None:
    """What is not newer than its validation was validated so, as far as can be known without reading it."""
    trained(changed())
    rows(a=9, at=VALIDATED - 1)
    assert refused(changed()) == {}


def test_rows_of_data_that_was_prepared_since_are_left_to_the_workflow() -> None:
    """Then the validation is no longer that of what was trained, and counts against it would say nothing."""
    trained(changed())
    write_shards(Path("prepared/mix/shards/index.parquet"), {"a": "abcd", "b": "xy"})
    validated(a=4, b=2)
    rows(a=5)
    assert refused(changed()) == {}


def test_lost_preparations_refuse_nothing() -> None:
    trained(changed())
    rows(a=5)
    assert reasons(changed()) == ["a: 3 -> 5 rows"]
    summary = Path("prepared/mix/validation/sources/a/summary.json")
    for text in ("{", "{}", "3"):
        os.utime(write(summary, text), (VALIDATED, VALIDATED))
        assert refused(changed()) == {}
    summary.unlink()
    assert refused(changed()) == {}
    validated(a=3)
    write(Path("prepared/mix/shards/index.parquet"), "no parquet")
    assert refused(changed()) == {}
    Path("prepared/mix/shards/index.parquet").unlink()
    assert refused(changed()) == {}
    for path in Path().glob("*.jsonl"):
        path.unlink()
    assert refused(changed()) == {}


def test_a_training_that_may_start_over_is_not_refused() -> None:
    trained(changed())
    mix(a=1)
    assert refused(changed(seed=3, **OVER)) == {}
    assert reasons(changed(seed=3)) != []


def test_a_schedule_that_is_stretched_is_said_before_it_goes_on() -> None:
    def said(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        write(Path("experiments/x/options.yml"), changed(train=before))
        return stretched_schedules(project(Path(), changed(train=now)))

    cosine = {"lr_scheduler": "timm_cosine", "max_train_steps": 10}
    assert said(cosine, {**cosine, "max_train_steps": 20}) == [], "there is nothing to go on from"
    trained(changed(train=cosine))
    (line,) = said(cosine, {**cosine, "max_train_steps": 20})
    assert line.startswith(
        "experiments/x: train.max_train_steps: 10 -> 20: its schedule timm_cosine ends with the last"
    )
    assert "Steps up to 10 were trained as part of 10" in line and "set train.t_initial." in line
    assert said(cosine, cosine) == []
    assert said(cosine, {**cosine, "max_train_steps": 20, "learning_rate": 0.5}) == [], "that is refused"
    write(Path("experiments/x/options.yml"), "unknown: key")
    assert stretched_schedules(project(Path(), changed(train={**cosine, "max_train_steps": 20}))) == []
    fixed = {**cosine, "t_initial": 10}
    trained(changed(train=fixed))
    assert said(fixed, {**fixed, "max_train_steps": 20}) == []
    constant = {"max_train_steps": 10}
    trained(changed(train=constant))
    assert said(constant, {"max_train_steps": 20}) == []


def full(name: str, start: str = "demo", **sections: Any) -> dict[str, Any]:
    return changed(name=name, model={"pretrained_model_path": start}, train=SHORT, **sections)


def test_an_experiment_that_starts_from_one_that_starts_over_is_refused() -> None:
    first, over = full("first"), full("first", seed=3, **OVER)
    second = full("second", "experiments/first/checkpoint-10/transformer")
    third = full("third", "experiments/second/checkpoint-10/transformer")
    for name in ("first", "second"):
        write(Path(f"experiments/{name}/checkpoint-10/transformer/model.safetensors"), "weights")
    trained(first, second)
    assert refused(first, second, third) == {}
    found = refused(over, second, third)
    assert found.keys() == {"second"}, "the third has no checkpoints yet"
    assert "  - the weights that it starts from: experiments/first is trained anew\n" in found["second"]
    trained(first, second, third)
    assert refused(over, second, third).keys() == {"second", "third"}
    assert refused(over, {**second, **OVER}, {**third, **OVER}) == {}


def test_an_adapter_that_is_trained_anew_refuses_what_starts_from_it() -> None:
    lora = {**SHORT, "lora_ft": True}
    first, over = changed(name="first", train=lora), changed(name="first", train=lora, seed=3, **OVER)
    path = "experiments/first/checkpoint-10/transformer_lora"
    second = changed(name="second", train={**lora, "lora_path": path})
    write(Path(path) / "pytorch_lora_weights.safetensors", "one")
    trained(first, second)
    assert refused(first, second) == {}
    write(Path(path) / "pytorch_lora_weights.safetensors", "two")
    assert refused(first, second) == {}, "the workflow converts it again where it must, and looks then"
    assert refused(over, second).keys() == {"second"}


def test_another_published_adapter_is_refused() -> None:
    lora = changed(train={"lora_ft": True, "lora_path": "published"})
    write(Path("published/pytorch_lora_weights.safetensors"), "one")
    trained(lora)
    assert refused(lora) == {}
    write(Path("published/pytorch_lora_weights.safetensors"), "two")
    assert reasons(lora) == ["the adapter that it starts from has changed"]


def test_identities_of_the_older_form_are_compared_as_far_as_they_go() -> None:
    def older(identity: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {"name": "x", "train": {}}
        for name, value in identity["options"].items():
            section, _, key = name.rpartition(".")
            if name in {"data.image_format", "data.image_quality"}:  # were no part of it
                continue
            if section:
                options.setdefault(section, {})[key] = value
            else:
                options[key] = value
        options["data"]["data_path"] = "mix.yml"
        options["train"]["cycle_decay"] = 1.0
        return {**identity, "options": options, "data": {"index": "ab" * 32, "mixture": {"a": 0.25, "b": 0.75}}}

    trained(changed(), change=older)
    assert refused(changed()) == {}
    assert reasons(changed(train={"learning_rate": 0.5})) == ["train.learning_rate: 8e-07 -> 0.5"]
    assert reasons(changed(data={"image_quality": 90})) == ["data.image_quality: 95 -> 90"]
    rows(a=5)
    assert refused(changed()) == {}, "its data is not known source by source"


def test_each_refused_experiment_has_its_own_message() -> None:
    contents = [changed(name="one"), changed(name="two"), changed(name="three")]
    trained(*contents)
    found = refused(changed(name="one", seed=1), contents[1], changed(name="three", seed=3))
    assert list(found) == ["one", "three"]
    assert "seed: 2233 -> 3" in found["three"] and "seed: 2233 -> 1" not in found["three"]
    rows(a=4)
    assert list(refused(*contents)) == ["one", "two", "three"], "all of them train on it"
