"""Names of files: made in one place, and read back from there."""

import re
from pathlib import Path

import pytest

from omnitune.encoding.groups import group_path, group_shards
from omnitune.paths import (
    ENCODED_GROUP,
    WEIGHTS_NAME,
    EvaluatedStep,
    adapter_file,
    conversion_file,
    group_name,
    parse_converted,
    parse_shard,
    path_hint,
    shard_name,
    weights_name,
)

pytestmark = pytest.mark.unit


def test_shards_are_named_and_read_back() -> None:
    names = (
        ("a", 3, "a-00003"),
        ("a_b_1", 123456, "a_b_1-123456"),
        ("数据", 1, "数据-00001"),
        ("हिन्दी", 2, "हिन्दी-00002"),
    )
    for source, shard, name in names:
        assert shard_name(source, shard) == name
        for path in (f"{name}.tar", Path("x") / f"{name}.parquet", f"s3://bucket/x-00001/{name}.jsonl"):
            assert parse_shard(path) == (source, shard)
    for wrong in ("a-3.tar", "a.tar", "-00001.tar", "a-00001", "a b-00001.tar", "a-٠٠٠٠١.tar"):
        with pytest.raises(ValueError, match="shards are named"):
            parse_shard(wrong)


def test_groups_are_of_consecutive_shards() -> None:
    names = ["b-00002", "a-00010", "a-00009", "a-00000", "a-100000"]
    found = group_shards([Path(f"{name}.jsonl") for name in names], 5)
    assert {key: [path.stem for path in paths] for key, paths in found.items()} == {
        ("a", 0): ["a-00000"],
        ("a", 1): ["a-00009"],
        ("a", 2): ["a-00010"],
        ("a", 20000): ["a-100000"],
        ("b", 0): ["b-00002"],
    }
    assert list(found) == sorted(found)


def test_a_group_has_one_name_for_rules_and_jobs() -> None:
    names = {"dataset": "d", "model": "m", "source": "a", "group": group_name(7)}
    assert group_path(Path("prepared/d/encoded/m"), "a", 7) == Path(ENCODED_GROUP.format(**names))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_converted_weights_are_named_and_read_back(lora: bool, ema: bool) -> None:
    step = EvaluatedStep(12, ema)
    name = weights_name(lora, ema)
    assert re.fullmatch(WEIGHTS_NAME, name)
    folder = f"experiments/x.1/checkpoint-12/{name}"
    assert conversion_file("x.1", step, lora) == f"{folder}/conversion.json"
    for path in (folder, f"./{folder}", f"{folder}/"):
        assert parse_converted(path) == ("x.1", step, lora)
    file = f"{folder}/pytorch_lora_weights.safetensors"
    assert parse_converted(file) == (("x.1", step, True) if lora else None)


def test_other_paths_are_no_conversions() -> None:
    for path in (
        None,
        "",
        "demo",
        "owner/model",
        "/home/experiments/x/checkpoint-1/transformer",
        "experiments/x/checkpoint-1/transformer_other",
        "experiments/x/checkpoint-last/transformer",
        "experiments/x/y/checkpoint-1/transformer",
    ):
        assert parse_converted(path) is None


def test_an_adapter_is_named_by_its_file_or_folder() -> None:
    file = Path("here/pytorch_lora_weights.safetensors")
    assert adapter_file("here") == adapter_file("here/") == adapter_file(str(file)) == file
    assert adapter_file("my/adapter.safetensors") == Path("my/adapter.safetensors")


def test_the_adapter_of_a_folder_is_ours_or_peft_or_comfyui(tmp_path: Path) -> None:
    for name in ("comfyui_lora.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
        (tmp_path / name).touch()
        assert adapter_file(str(tmp_path)) == tmp_path / name


@pytest.mark.parametrize(
    ("path", "hint"),
    [("a.jpg", ""), ("~/a.jpg", "~ is not expanded"), ("$HOME/a", "$HOME is"), ("a\\b", "not by"), ("a.jpg ", "space")],
)
def test_what_is_likely_wrong_with_a_path_is_told(path: str, hint: str) -> None:
    assert hint in path_hint(path)
    assert bool(path_hint(path)) == bool(hint)


def test_scaled_adapters_are_steps_of_their_own() -> None:
    """Between an experiment's plain steps: neither the newest weights nor an average."""
    steps = [EvaluatedStep(0), EvaluatedStep(5, lora_scale=0.5), EvaluatedStep(5), EvaluatedStep(5, lora_scale=1.25)]
    assert sorted(steps, key=lambda step: step) == steps
    assert [str(step) for step in steps] == ["0", "5-x0.5", "5", "5-x1.25"]
    assert [EvaluatedStep.parse(str(step)) for step in steps] == steps
    assert [step.is_plain for step in steps] == [True, False, True, False]
    assert steps[1].label == "step 5, LoRA x 0.5"
    with pytest.raises(ValueError, match=r"step '5-x' is not allowed"):
        EvaluatedStep.parse("5-x")
