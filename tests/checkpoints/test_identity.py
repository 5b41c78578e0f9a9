"""What a training is a function of: what changes it, what does not, and what is said where it has changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.projects import changed, write, write_shards
from omnitune.checkpoints.identity import changes, identity_of, refusal, require_same
from omnitune.checkpoints.states import TrainerState, find_resumable, list_checkpoints
from omnitune.config import ExperimentOptions
from omnitune.errors import ConfigError
from omnitune.io.files import sha256_of, write_json
from omnitune.paths import STATE_FILE
from omnitune.pretrained.weights import weights_hash

pytestmark = pytest.mark.unit

SAMPLES = {"a": "abcdefg", "b": "xyz"}
FACTS = {"ratio": 0.5, "samples": 3, "sha256": "s"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model, shards and a mixture of two sources in the working directory."""
    monkeypatch.chdir(tmp_path)
    write(Path("base/manifest.json"), '{"transformer/model.safetensors": "aa"}')
    write(Path("base/transformer/model.safetensors"), "weights")
    mix(a=1, b=3)
    write_shards(Path("shards/index.parquet"), SAMPLES)


def mix(**ratios: float) -> None:
    entries = [{"path": f"{name}.jsonl", "ratio": ratio} for name, ratio in ratios.items()]
    write(Path("mix.yml"), {"data": entries})


def identity(index: str = "shards/index.parquet", **sections: Any) -> dict[str, Any]:
    options = ExperimentOptions.model_validate(changed(**sections))
    return identity_of(options, Path("base"), Path("base/transformer"), Path(index))


def save(step: int, trained: dict[str, Any]) -> Path:
    """A checkpoint of the experiment x; returns the experiment's folder."""
    path = Path(f"experiments/x/checkpoint-{step}") / STATE_FILE
    write(path, json.dumps(vars(TrainerState(step, trained, None))))
    return path.parents[1]


def test_it_is_made_of_options_weights_and_data() -> None:
    found = identity()
    assert found["options"] == ExperimentOptions.model_validate(changed()).identity
    assert found["base"] == sha256_of(Path("base/manifest.json"))
    assert found["starting_weights"] == weights_hash(Path("base/transformer"))
    assert {name: (facts["ratio"], facts["samples"]) for name, facts in found["data"].items()} == {
        "a": (0.25, 7),
        "b": (0.75, 3),
    }
    assert "starting_adapter" not in found
    assert json.loads(json.dumps(found)) == found


def test_how_data_is_cut_and_where_it_lies_changes_nothing() -> None:
    first = identity()
    write_shards(Path("other/index.parquet"), SAMPLES, per_shard=5)
    write_shards(Path("remote/index.parquet"), SAMPLES, tars="s3://bucket/data/")
    for index in ("other/index.parquet", "remote/index.parquet"):
        assert identity(index, data={"samples_per_shard": 5}) == first
    write_shards(Path("more/index.parquet"), {**SAMPLES, "c": "not in the mixture"})
    assert identity("more/index.parquet") == first


def test_the_order_of_a_mixture_changes_nothing() -> None:
    """To the last bit, as ratios are compared exactly."""
    ratios = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.7}
    write_shards(Path("shards/index.parquet"), dict.fromkeys(ratios, "xy"))
    mix(**ratios)
    first = identity()
    mix(**dict(reversed(ratios.items())))
    assert identity() == first
    mix(d=0.7, a=0.1, c=0.3, b=0.2)
    assert identity() == first


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ({"a": "abcdef", "b": "xyz"}, "a: 7 -> 6 samples"),
        ({"a": "abcdefX", "b": "xyz"}, "a: other content in its 7 samples"),
        ({"a": "bacdefg", "b": "xyz"}, "a: other content in its 7 samples"),
    ],
)
def test_other_samples_change_it(samples: dict[str, str], line: str) -> None:
    first = identity()
    write_shards(Path("other/index.parquet"), samples)
    assert changes(first, identity("other/index.parquet")) == [line]


def test_other_weights_to_start_from_change_it() -> None:
    adapter = {"lora_ft": True, "lora_path": "adapter"}
    write(Path("adapter/pytorch_lora_weights.safetensors"), "one")
    first = identity(train=adapter)
    assert first["starting_adapter"] == sha256_of(Path("adapter/pytorch_lora_weights.safetensors"))
    write(Path("adapter/pytorch_lora_weights.safetensors"), "two")
    write(Path("base/transformer/model.safetensors"), "more weights")
    write(Path("base/manifest.json"), '{"transformer/model.safetensors": "bb"}')
    assert changes(first, identity(train=adapter)) == [
        "the files of its base model have changed",
        "the weights that it starts from have changed",
        "the adapter that it starts from has changed",
    ]


def test_a_missing_adapter_to_start_from_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"train\.lora_path: lost/pytorch_lora_weights\.safetensors does not exist\. Name"
    ):
        identity(train={"lora_ft": True, "lora_path": "lost"})


def test_a_conversion_speaks_for_its_weights() -> None:
    converted = Path("experiments/y/checkpoint-3/transformer")
    write(converted / "diffusion_pytorch_model.safetensors", "w")
    write_json(converted / "conversion.json", {"files": {"diffusion_pytorch_model.safetensors": {"sha256": "c"}}})
    assert weights_hash(converted) == sha256_of(converted / "conversion.json")


def test_an_index_that_does_not_fit_the_mixture_is_named() -> None:
    mix(a=1, c=1)
    with pytest.raises(ConfigError, match=r"index\.parquet: has no samples of 'c' \(it has a, b\)\..*cores 2 shard"):
        identity()
    for content in (None, "no parquet"):
        if content:
            write(Path("lost/index.parquet"), content)
        with pytest.raises(ConfigError, match=r"lost/index\.parquet: cannot be read .*--forcerun index_dataset"):
            identity("lost/index.parquet")


def test_changes_are_said_as_a_person_would() -> None:
    options = {"train.learning_rate": 1e-4, "data.max_input_pixels": [4096, 1024], "seed": 1, "model.revision": None}
    trained = {"options": options, "data": {"gone": FACTS, "a": FACTS}, "base": "b", "starting_weights": [["w", 1]]}
    asked = {
        "options": {**options, "train.learning_rate": 0.02, "data.max_input_pixels": 4096, "model.revision": "ü"},
        "data": {"a": {**FACTS, "ratio": 1 / 3}, "new": FACTS},
        "base": "b",
        "starting_weights": [["w", 1]],
    }
    assert changes(trained, trained) == []
    assert changes(trained, asked) == [
        "data.max_input_pixels: [4096, 1024] -> 4096",
        'model.revision: null -> "ü"',
        "train.learning_rate: 0.0001 -> 0.02",
        "a: ratio 0.5 -> 0.333333",
        "gone: no longer in the mixture",
        "new: new in the mixture",
    ]
    both = {**FACTS, "ratio": 1.0, "samples": 4}
    assert changes({"data": {"a": FACTS}}, {"data": {"a": both}}) == ["a: 3 -> 4 samples", "a: ratio 0.5 -> 1"]


def test_what_only_one_of_them_knows_is_no_change() -> None:
    options = ExperimentOptions.model_validate(changed()).identity
    assert changes({"options": options}, {"options": options, "base": "b", "data": {"a": FACTS}}) == []
    assert changes({"options": {**options, "train.gone": 1}}, {"options": options}) == []
    fewer = {name: value for name, value in options.items() if name != "train.lora_rank"}
    assert changes({"options": fewer}, {"options": options}) == [], "a key that was not there yet has had its default"
    other = {**options, "train.lora_rank": 16}
    assert changes({"options": fewer}, {"options": other}) == ["train.lora_rank: 8 -> 16"]


def test_going_on_needs_the_same_identity() -> None:
    trained = identity(train={"learning_rate": 0.1})
    for step in (10, 20):
        folder = save(step, trained)
    same = ExperimentOptions.model_validate(changed(train={"learning_rate": 0.1}))
    assert require_same(same, trained, folder, "x.yml")
    mix(a=1, b=1)
    asked, latest = identity(train={"learning_rate": 0.2}), changed(train={"learning_rate": 0.2})
    with pytest.raises(ConfigError) as error:
        require_same(ExperimentOptions.model_validate(latest), asked, folder, "x.yml")
    message = str(error.value)
    assert "train.learning_rate: 0.1 -> 0.2" in message and "a: ratio 0.25 -> 0.5" in message
    assert "superseded-1" in message
    assert list(list_checkpoints(folder)) == [10, 20], "nothing is moved"
    over = ExperimentOptions.model_validate({**latest, "resume_from_checkpoint": None})
    assert not require_same(over, asked, folder, "x.yml")
    assert require_same(over, trained, folder, "x.yml"), "to start over under the same options is to go on"


def test_without_checkpoints_everything_is_the_same(tmp_path: Path) -> None:
    assert require_same(ExperimentOptions.model_validate(changed()), identity(), tmp_path / "experiments/x", "x.yml")


def test_starting_over_again_loses_nothing() -> None:
    """A preempted training that was to start over goes on from what it has saved since."""
    over = ExperimentOptions.model_validate(changed(seed=2, resume_from_checkpoint=None))
    folder, asked = save(10, identity()), identity(seed=2)
    same = require_same(over, asked, folder, "x.yml")
    assert find_resumable(folder, last_step=20, same=same) is None
    save(5, asked)
    same = require_same(over, asked, folder, "x.yml")
    assert find_resumable(folder, last_step=20, same=same) == folder / "checkpoint-5"
    assert not (folder / "superseded-2").exists()


@pytest.mark.parametrize("killed_at", range(5))
def test_an_attempt_is_set_aside_whole_though_a_run_is_killed_at_it(
    killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = ExperimentOptions.model_validate(changed(seed=2, resume_from_checkpoint=None))
    for step in (5, 10):
        folder = save(step, identity())
    made = [folder / name for name in ("logs/metrics.jsonl", "evaluation/5/b/scores.json", "report/index.html")]
    for path in made:
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "superseded-by-hand").mkdir()
    rename, left = Path.rename, iter(range(killed_at))

    def killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        find_resumable(folder, 20, require_same(over, identity(seed=2), folder, "x.yml"))
    assert find_resumable(folder, 20, require_same(over, identity(seed=2), folder, "x.yml")) is None
    assert not list_checkpoints(folder) and not any(path.exists() for path in made)
    assert len(list(folder.glob("superseded-[0-9]/*"))) >= 5


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({}, "    model: {pretrained_model_path: experiments/x/checkpoint-20/transformer}"),
        ({"lora_ft": True}, "    train: {lora_path: experiments/x/checkpoint-20/transformer_lora}"),
    ],
)
def test_a_refusal_names_what_changed_and_the_ways_out(train: dict[str, Any], line: str) -> None:
    options = ExperimentOptions.model_validate(changed(train=train))
    for step in (9, 20):
        folder = save(step, identity())
    (folder / "superseded-3").mkdir()
    message = refusal(options, ["seed: 1 -> 2", "a: 3 -> 4 samples"], folder, "config/x.yml").splitlines()
    assert message[0].startswith("experiments/x: was trained otherwise than config/x.yml now asks for. Nothing was run")
    assert message[1:3] == ["  - seed: 1 -> 2", "  - a: 3 -> 4 samples"]
    assert message[3].startswith("Undo this")
    assert "set resume_from_checkpoint: null in config/x.yml;" in message[4]
    assert message[4].endswith("experiments/x/superseded-4")
    assert "options file of another name" in message[5]
    assert message[6:] == ["    name: x_2", line]
    elsewhere = refusal(options, ["seed: 1 -> 2"], Path("my/folder"), "config/x.yml")
    assert "pretrained_model_path" not in elsewhere and "lora_path" not in elsewhere
