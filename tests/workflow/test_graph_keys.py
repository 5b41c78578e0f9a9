"""Each key of an options and a benchmark file: a change of it runs exactly the stages that it names, and no others."""

import copy
import itertools
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from helpers.lab import Lab, first_lab, write_lab
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
    "reports": "build_report",
}
# Other values where one cannot be guessed, and the keys that have to change with it.
VALUES: dict[str, Any] = {
    "data.instruction_keys": ["caption", "instruction"],
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
    "max_input_pixels": 1024,
    "height": 48,
    "width": 48,
    "image_guidance_scale": 2.0,
    "text_guidance_scale": 2.0,
    "check": None,
    "primary": "psnr",
    "measures": ["psnr"],
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
    "format",
    "language",
    "export",
    "model.pretrained_model_path",
    "model.pretrained_revision",
    "model.pretrained_vae_model_name_or_path",
    "model.pretrained_text_encoder_model_name_or_path",
    "model.pretrained_vae_revision",
    "model.pretrained_text_encoder_revision",
    "model.vae_subfolder",
    "model.transformer_path",
    "model.arch_opt",
    "convert.formats",
    "train.lora_path",
    "train.lr_step_rules",
    "train.hsdp_shard_size",
    "resume_from_checkpoint",
    "val.evaluate_checkpoints",
    "val.lora_scales",
    "judges",
    "baselines",
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


@dataclass(frozen=True)
class Change:
    """Another value of a key: of the options of `two`, or of the benchmark."""

    key: str
    field: FieldInfo
    benchmark: bool

    def apply(self, lab: Lab) -> None:
        """Sets it, with the keys that have to go with it."""
        file = lab.benchmarks["first"] if self.benchmark else lab.options["two"]
        model: Any = Benchmark(**file) if self.benchmark else ExperimentOptions(name="two", **file)
        *sections, name = self.key.split(".")
        for section in sections:
            file, model = file.setdefault(section, {}), getattr(model, section)
        file |= WITH.get(self.key, {})
        file[name] = other_value(self.key, self.field, copy.deepcopy(getattr(model, name)))

    def stages(self) -> list[str]:
        """What the key says that it affects."""
        affects = affects_of(self.field)
        assert affects is not None
        return sorted({*affects.stages, *affects.parts})

    def rules(self) -> frozenset[str]:
        """Those that a dry run is to give the key as a reason for."""
        named = {RULES[stage] for stage in self.stages() if stage in RULES}
        # A dry run looks for a reason only where nothing before has one, and lists no tar behind a validation that
        # runs.
        if named & {"validate_source", "validate_dataset"}:
            named -= {"shard_dataset", "encode_dataset"}
        if "validate_source" in named:
            named.discard("validate_dataset")
        return frozenset(named - {"prepare_training"} or named)


CHANGES = [Change(key, field, benchmark=False) for key, field in keys(ExperimentOptions)]
CHANGES += [Change(key, field, benchmark=True) for key, field in keys(Benchmark)]


def plans_with(planner: Planner, root: Path, changes: list[Change]) -> Iterator[tuple[list[Change], dict[str, str]]]:
    """The rules that have a reason of their own after these changes, each with that reason.

    Values that are not allowed together are planned in halves.
    """
    lab = first_lab()
    lab.options["two"]["resume_from_checkpoint"] = None
    plan = None
    with suppress(ValueError):  # a value that the others do not allow
        for change in changes:
            change.apply(lab)
        write_lab(lab, root)
        plan = planner.plan(root)
    if plan and not plan.code:
        own = ("Params have changed", "Set of input files has changed")
        yield changes, {job[0]: text for job, text in plan.reasons.items() if any(words in text for words in own)}
        return
    assert len(changes) > 1, f"{changes}: {plan and plan.output[-2000:]}"
    middle = len(changes) // 2
    yield from plans_with(planner, root, changes[:middle])
    yield from plans_with(planner, root, changes[middle:])


def test_every_key_runs_what_it_names(planner: Planner, place: Path) -> None:
    wrong = []
    for _, group in itertools.groupby(sorted(CHANGES, key=Change.stages), Change.stages):
        for changes, reasons in plans_with(planner, place, list(group)):
            names, rules = [change.key for change in changes], changes[0].rules()
            if set(reasons) != rules:
                wrong.append(f"{names}: run {sorted(reasons)}, name {sorted(rules)}")
            for rule, reason in reasons.items():
                missing = [name for name in names if name not in reason]
                if missing and "Params" in reason:
                    wrong.append(f"{missing}: are no reason for {rule}: {reason}")
    assert not wrong, "\n".join(wrong)
