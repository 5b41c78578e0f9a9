"""Each key of an options and a benchmark file: a change of it runs exactly the stages that it names, and no others."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from helpers.lab import first_lab, write_lab
from helpers.planner import Planner
from helpers.workplace import Workplace
from omnitune.config import Benchmark, ExperimentOptions
from omnitune.config.affects import affects_of
from omnitune.config.base import section_of
from omnitune.config.choices import OneOf

pytestmark = pytest.mark.workflow

# The rule whose parameters have the keys of a stage. A dry run does not list encodings behind an index that is made
# again.
RULES = {
    "base": "prepare_pretrained",
    "samples": "validate_source",
    "manifests": "validate_dataset",
    "shards": "shard_dataset",
    "encodings": "encode_dataset",
    "groups": "encode_dataset",
    "weights": "prepare_training",
    "checkpoints": "train_experiment",
    "conversions": "convert_checkpoint",
    "images": "prepare_benchmark",
    "scores": "prepare_benchmark",
    "parts": "generate_images",
}
# Other values where one cannot be guessed, and the keys that have to change with it.
VALUES: dict[str, Any] = {
    "data.max_output_pixels": 512,
    "data.max_input_pixels": [1024, 1024],
    "data.image_root": "data",
    "data.source_root": "data",
    "image_root": "data",
    "data.urls.private_networks": ["10.1.0.0/16"],
    "data.shard_bytes": 5000,
    "train.attention": "per_sample",
    "train.global_batch_size": 4,
    "train.batch_size": 1,
    "train.lr_scheduler": "linear",
    "train.parameter_groups": [{"pattern": "layers.*"}],
    "train.mixed_precision": "bf16",
    "train.lora_target_modules": ["to_q"],
    "train.resume_from_checkpoint": "latest",
    "val.data_path": "data/prompts.jsonl",
    "cache_dir": "elsewhere",
    "logger.log_with": "tensorboard",
    "logger.project_name": "other",
    "transport.snr_type": "uniform",
    "negative_prompt": "ugly",
    "cfg_range": [0.0, 0.5],
    "height": 48,
    "width": 48,
    "image_guidance_scale": 2.0,
    "text_guidance_scale": 2.0,
    "check": None,
    "convert.dtype": "bf16",
    "convert.max_shard_size": "5GB",
    "val.image_guidance_scale": 3.0,
}
WITH = {
    "train.gradient_accumulation_steps": {"batch_size": 1},
    "train.parameter_groups": {"lora_ft": False},
    "train.lora_target_modules": {"lora_ft": True},
}
# What names files, what other keys must go with, and what is tested elsewhere.
NOT_HERE = {
    "extends",
    "name",
    "data.data_path",
    "prompts",
    "model.pretrained_model_path",
    "model.pretrained_revision",
    "model.pretrained_vae_model_name_or_path",
    "model.pretrained_text_encoder_model_name_or_path",
    "model.pretrained_vae_revision",
    "model.pretrained_text_encoder_revision",
    "model.transformer_path",
    "model.arch_opt",
    "convert.formats",
    "train.lora_path",
    "train.lr_step_rules",
    "train.hsdp_shard_size",
    "train.t_in_epochs",
    "resume_from_checkpoint",
    "val.evaluate_checkpoints",
}


def keys(model: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation) if affects_of(field) is None else None
        if section:
            yield from keys(section, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in NOT_HERE:
            yield f"{prefix}{name}", field


def other_value(key: str, field: FieldInfo, value: Any) -> Any:
    """An allowed value that is not the one given."""
    if key in VALUES:
        return VALUES[key]
    choices = [c for c in getattr(field.annotation, "__args__", ()) if isinstance(c, str | bool)]
    choices += [name for entry in field.metadata if isinstance(entry, OneOf) for name in entry.names]
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        limits = [getattr(m, name) for m in field.metadata for name, kind in LIMITS.items() if isinstance(m, kind)]
        return value / 2 if value and value / 2 not in limits else 0.5
    return 7


LIMITS = {"ge": Ge, "gt": Gt, "le": Le, "lt": Lt}
OPTIONS_KEYS = dict(keys(ExperimentOptions))
BENCHMARK_KEYS = dict(keys(Benchmark))


@pytest.fixture(scope="module")
def planner(lab_run: Workplace) -> Iterator[Planner]:
    made = Planner(lab_run.root)
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(lab_run: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished lab; its second experiment will be changed."""
    root = tmp_path_factory.mktemp("keys") / "project"
    shutil.copytree(lab_run.root, root, symlinks=True)
    return root


def plan_with(planner: Planner, root: Path, key: str, field: FieldInfo, benchmark: bool) -> dict[str, str]:
    """The rules that have a reason of their own after a change of the key, each with that reason."""
    lab = first_lab()
    lab.options["two"]["resume_from_checkpoint"] = None
    file = lab.benchmarks["first"] if benchmark else lab.options["two"]
    model: Any = Benchmark(**file) if benchmark else ExperimentOptions(name="two", **file)
    *sections, name = key.split(".")
    target = file
    for section in sections:
        target = target.setdefault(section, {})
        model = getattr(model, section)
    target |= WITH.get(key, {})
    target[name] = other_value(key, field, copy.deepcopy(getattr(model, name)))
    write_lab(lab, root)
    plan = planner.plan(root)
    assert plan.code == 0, plan.output[-2000:]
    own = ("Params have changed", "Set of input files has changed")
    return {job[0]: reason for job, reason in plan.reasons.items() if any(words in reason for words in own)}


def expected_rules(key: str, field: FieldInfo) -> set[str]:
    affects = affects_of(field)
    assert affects is not None
    return {RULES[stage] for stage in (*affects.stages, *affects.parts) if stage in RULES}


def test_every_key_runs_what_it_names(planner: Planner, place: Path) -> None:
    wrong = []
    for benchmark, found in ((False, OPTIONS_KEYS), (True, BENCHMARK_KEYS)):
        for key, field in found.items():
            reasons = plan_with(planner, place, key, field, benchmark)
            wanted = expected_rules(key, field)
            # A dry run looks for a reason only where nothing before has one, and lists no tar behind a validation that
            # runs.
            if wanted & {"validate_source", "validate_dataset"}:
                wanted -= {"shard_dataset", "encode_dataset"}
            if "validate_source" in wanted:
                wanted.discard("validate_dataset")
            if wanted - {"prepare_training"}:
                wanted.discard("prepare_training")
            if set(reasons) != wanted:
                wrong.append(f"{key}: runs {sorted(reasons)}, names {sorted(wanted)}")
            wrong += [
                f"{key}: {rule} gives {reason}"
                for rule, reason in reasons.items()
                if key not in reason and "Params" in reason
            ]
    assert not wrong, "\n".join(wrong)
