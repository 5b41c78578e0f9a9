"""What a change of a key makes again: every key says it, and rules, identity and jobs read the same from it."""

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from helpers.projects import changed
from omnitune.config import Benchmark, ExperimentOptions, Mixture, WorkflowConfig
from omnitune.config.affects import (
    NOTHING,
    STAGES,
    Affects,
    Stage,
    affects_of,
    defaults,
    key_line,
    keys_affecting,
    keys_of,
    read_key_lines,
)
from omnitune.config.base import Section, section_of
from omnitune.config.data import DataOptions
from omnitune.images.prepare import ImageLimits
from omnitune.validation.dataset import ShardCut
from omnitune.validation.source import Checks

pytestmark = pytest.mark.unit


def silent(model: type[BaseModel], where: str = "") -> list[str]:
    """Keys that do not say what they affect; of a section that does not say it itself, its keys."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        if affects_of(field) is None:
            section = section_of(field.annotation)
            found += [f"{where}{name}"] if section is None else silent(section, f"{where}{name}.")
    return found


@pytest.mark.parametrize("model", [ExperimentOptions, Benchmark, Mixture, WorkflowConfig])
def test_every_key_says_what_it_affects(model: type[BaseModel]) -> None:
    assert silent(model) == []


def test_a_key_that_does_not_say_it_is_found() -> None:
    class Inner(Section):
        said: Annotated[int, NOTHING] = 1
        unsaid: Annotated[int, Field(description="x")] = 1

    class Outer(Section):
        inner: Inner = Inner()
        listed: list[Inner] = []
        plain: int = 1
        whole: Annotated[Inner | None, NOTHING] = None

    assert silent(Outer) == ["inner.unsaid", "listed.unsaid", "plain"]


def test_unknown_stages_are_refused() -> None:
    with pytest.raises(AssertionError, match="unknown stage"):
        Affects("weigths")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="unknown stage"):
        Affects("weights", weigths=lambda section, value: value)


def data(**keys: Any) -> DataOptions:
    return DataOptions(data_path="mix.yml", **keys)


def affected(options: DataOptions, *stages: Stage) -> dict[str, Any]:
    return keys_affecting(options, *stages)


def test_image_limits_affect_manifests_and_rows_do_not_where_these_are_cut_by_bytes() -> None:
    limits = {"max_output_pixels", "max_input_pixels", "max_side_length", "image_format", "image_quality"}
    by_rows, by_bytes = data(), data(shard_bytes=10_000)
    assert affected(by_rows, "shards").keys() == affected(by_bytes, "shards").keys() == limits
    assert affected(by_rows, "manifests").keys() == {"max_reject_fraction", "samples_per_shard", "shard_bytes", *limits}
    assert affected(by_bytes, "manifests").keys() == {"max_reject_fraction", "shard_bytes", *limits}
    other = data(shard_bytes=10_000, samples_per_shard=7)
    assert affected(other, "manifests") == affected(by_bytes, "manifests"), "rows do not count there"
    assert affected(data(samples_per_shard=7), "manifests") != affected(by_rows, "manifests")


def test_the_number_of_input_limits_affects_the_verdict_on_rows() -> None:
    one, other, more = (data(max_input_pixels=limits) for limits in ([4096, 1024], [9000, 2000], [4096, 1024, 256]))
    assert affected(one, "samples") == affected(other, "samples")
    assert (affected(one, "samples")["max_input_pixels"], affected(more, "samples")["max_input_pixels"]) == (2, 3)
    assert "max_input_pixels" not in affected(data(max_input_pixels=4096), "samples")
    assert affected(one, "samples", "shards")["max_input_pixels"] == [4096, 1024], "the whole, where one stage needs it"


def test_the_stored_precision_affects_weights_that_are_trained_from_it() -> None:
    def identity(**keys: Any) -> dict[str, Any]:
        return ExperimentOptions.model_validate(changed(data=keys)).identity

    assert identity(encoded_precision="fp32") == identity(encoded_precision="bf16")
    assert identity(encode=True, encoded_precision="fp32")["data.encoded_precision"] == "fp32"
    assert identity(encode=True, encoded_precision="fp32") != identity(encode=True, encoded_precision="bf16")
    assert affected(data(encoded_precision="fp32"), "encodings") != affected(data(), "encodings")


def test_full_names_are_those_of_the_file() -> None:
    options = ExperimentOptions.model_validate(changed(train={"parameter_groups": [{"pattern": "norm_out.*"}]}))
    found = keys_affecting(options, "weights")
    assert {"seed", "data.max_side_length", "model.pretrained_model_path", "transport.do_shift"} <= found.keys()
    assert found["train.parameter_groups"] == [{"pattern": "norm_out.*", "learning_rate": None}]
    assert json.loads(json.dumps(found)) == found, "as JSON holds it"
    section = keys_affecting(options.train, "checkpoints", prefix="train.")
    assert section == {"train.max_train_steps": 4000}


@pytest.mark.parametrize("stage", STAGES)
def test_the_names_are_known_without_values(stage: Stage) -> None:
    """Rules name their parameters by the model alone, whatever a file says."""
    for options in (changed(), changed(data={"shard_bytes": 9, "encode": True, "max_input_pixels": 4096})):
        checked = ExperimentOptions.model_validate(options)
        names = keys_of(ExperimentOptions, stage)
        assert list(keys_affecting(checked, stage)) == [n for n in names if n in keys_affecting(checked, stage)]
    assert len(set(keys_of(ExperimentOptions, stage))) == len(keys_of(ExperimentOptions, stage))


def test_each_stage_of_the_workflow_is_affected_by_some_key() -> None:
    models = (ExperimentOptions, Benchmark, Mixture, WorkflowConfig)
    assert [stage for stage in STAGES if not any(keys_of(model, stage) for model in models)] == []


def lines(section: BaseModel, *stages: Stage, prefix: str = "") -> list[str]:
    """The parameters of a rule, as rules/common.smk makes them."""
    names, keys = (
        keys_of(type(section), *stages, prefix=prefix),
        keys_affecting(section, *stages, prefix=prefix),
    )
    return [key_line(name, keys.get(name)) for name in names]


def test_jobs_read_what_rules_pass_to_them() -> None:
    options = data(max_input_pixels=[4096, 1024], image_root="s3://a: b", image_format="webp", max_side_length=512)
    others = [["files", "x"], {"a": 1}, "format: 2", "no line of a key", None]
    checks = Checks.from_keys(read_key_lines([*lines(options, "samples", prefix="data."), *others]), tokenizer="t")
    assert checks == Checks(image_root="s3://a: b", input_limits=2, tokenizer="t")
    limits = ImageLimits(1048576, [4096, 1024], 512, "webp")
    assert ImageLimits.from_keys(read_key_lines(lines(options, "shards", prefix="data."))) == limits
    by_rows = ShardCut(samples_per_shard=1000, limits=vars(limits))
    assert ShardCut.from_keys(read_key_lines(lines(options, "manifests"))) == by_rows
    by_bytes = options.model_copy(update={"shard_bytes": 9000})
    cut = ShardCut.from_keys(read_key_lines(lines(by_bytes, "manifests", prefix="data.")))
    assert cut == ShardCut(shard_bytes=9000, limits=vars(limits))


@pytest.mark.parametrize("value", [None, True, 0.1, 1e-18, 3, 'a: b, "ü" \\ {x}', [1, 2], {"b": 1, "a": [None]}])
def test_values_survive_their_line(value: Any) -> None:
    line = key_line("data.some_key", value)
    assert line.startswith("data.some_key: ") and "\n" not in line
    assert read_key_lines([line]) == {"some_key": value}


def test_one_is_one_however_it_is_written() -> None:
    def options(number: Any) -> ExperimentOptions:
        train = {"max_grad_norm": number, "learning_rate": number, "lora_rank": number, "warmup_t": number}
        return ExperimentOptions.model_validate(changed(seed=number, train=train, transport={"logit_std": number}))

    first, second = options(1), options(1.0)
    assert lines(first, "weights") == lines(second, "weights")
    assert json.dumps(first.identity) == json.dumps(second.identity)
    protocols = [Benchmark(prompts="p", text_guidance_scale=scale, cfg_range=(0, scale)) for scale in (1, 1.0)]
    assert lines(protocols[0], "images") == lines(protocols[1], "images")


def test_defaults_are_those_of_a_file_that_says_nothing() -> None:
    def flat(content: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in content.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return found

    required = {"name", "data.data_path", "model.pretrained_model_path"}
    said = flat(ExperimentOptions.model_validate(changed()).model_dump(mode="json"), "")
    assert defaults(ExperimentOptions) == {name: value for name, value in said.items() if name not in required}
    assert defaults(Benchmark)["cfg_range"] == [0.0, 1.0]
