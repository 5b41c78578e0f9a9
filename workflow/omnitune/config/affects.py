"""What a change of a key makes again: said once, beside the key, for rules, identities of weights and documentation."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omnitune.config.base import section_of

Stage = Literal[
    # what is made, and in brackets the rule whose parameters have the keys
    "base",  # resources/pretrained/{model} [prepare_pretrained]
    "samples",  # the verdict on each row [validate_source]
    "manifests",  # which shards there are and which rows are in them, the limit on rejected rows [validate_dataset]
    "shards",  # tars [shard_dataset]
    "encodings",  # stored posteriors and text features [encode_dataset]
    "groups",  # which encodings are made together [encode_dataset]
    "weights",  # what a training comes to; checkpoints are bound to it [prepare_training]
    "checkpoints",  # at which steps a training saves, and its last step [train_experiment]
    "evaluations",  # which checkpoints are converted and evaluated, to which formats, and in which layouts images are
    "conversions",  # how converted weights are written [convert_checkpoint]
    "images",  # what a benchmark draws and its held-out losses [prepare_benchmark]
    "parts",  # how its prompts are cut into jobs [generate_images]
    "judgements",  # what judges are asked of the images [judge_images, run_judge]
    "scores",  # how images are measured [prepare_benchmark]
    "reports",  # what the report says of the scores [build_report]
    "names",  # where something lies: compared is what is found there
]
STAGES = get_args(Stage)


@dataclass(frozen=True)
class Affects:
    """An annotation of a configuration key.

    Attributes:
        stages: what depends on the key's value.
        parts: what depends on a part of it: a function of the key's section and value to that part; None for nothing.
    """

    stages: tuple[Stage, ...]
    parts: Mapping[str, Callable[[Any, Any], Any]]

    def __init__(self, *stages: Stage, **parts: Callable[[Any, Any], Any]) -> None:
        unknown = [name for name in (*stages, *parts) if name not in STAGES]
        assert not unknown, f"unknown stage {unknown}"
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "parts", parts)


NOTHING = Affects()  # logs, caches, how work is cut without changing results, mere checks
NAMES = Affects("names")


def affects_of(field: FieldInfo) -> Affects | None:
    """What a field says of itself; None for a section, whose keys say it."""
    return next((entry for entry in field.metadata if isinstance(entry, Affects)), None)


def keys_affecting(section: BaseModel, *stages: Stage, prefix: str = "") -> dict[str, Any]:
    """The keys of a section that any of the stages depends on, with their values as JSON holds them.

    Args:
        section: a checked configuration file or a section of one; nested sections are gone through.
        stages: which.
        prefix: what stands before the names, such as "data.".
    """
    dumped = section.model_dump(mode="json")
    keys: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        affects, value = affects_of(field), getattr(section, name)
        if affects is None:
            if isinstance(value, BaseModel):
                keys |= keys_affecting(value, *stages, prefix=f"{prefix}{name}.")
            continue
        parts = [affects.parts[stage](section, value) for stage in stages if stage in affects.parts]
        if any(stage in affects.stages for stage in stages):
            keys[f"{prefix}{name}"] = dumped[name]
        elif any(part is not None for part in parts):
            keys[f"{prefix}{name}"] = next(part for part in parts if part is not None)
    return keys


def keys_of(model: type[BaseModel], *stages: Stage, prefix: str = "") -> list[str]:
    """The full names of the keys that any of the stages depends on, or may."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        affects = affects_of(field)
        if affects is not None:
            if any(stage in affects.stages or stage in affects.parts for stage in stages):
                names.append(f"{prefix}{name}")
        elif (section := section_of(field.annotation)) is not None:
            names += keys_of(section, *stages, prefix=f"{prefix}{name}.")
    return names


def defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The default of each key that has one, by its full name, as JSON holds it."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = section_of(field.annotation) if affects_of(field) is None else None
        if section is not None:
            found |= defaults(section, f"{prefix}{name}.")
        elif not field.is_required():
            found[f"{prefix}{name}"] = json.loads(json.dumps(field.default))
    return found


def key_line(name: str, value: Any) -> str:
    """A key as a parameter of a rule: what Snakemake compares, and shows where it differs."""
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"


def key_params(
    model: type[BaseModel], section: Callable[[Any], BaseModel], *stages: Stage, prefix: str = ""
) -> dict[str, Callable[[Any], str]]:
    """One parameter of a rule for each key that its jobs depend on: a function of wildcards to the key's line.

    Args:
        model: knows which keys these are.
        section: a function of wildcards to the model that has their values.
        stages: which jobs.
        prefix: what stands before the names, such as "data.".
    """
    read: dict[
        int, dict[str, Any]
    ] = {}  # by section, which live as long as the project: each has many keys and is asked for each

    def line(key: str) -> Callable[[Any], str]:
        def value(wildcards: Any) -> str:
            found = section(wildcards)
            if id(found) not in read:
                read[id(found)] = keys_affecting(found, *stages, prefix=prefix)
            return key_line(key, read[id(found)].get(key))

        return value

    return {name.replace(".", "_"): line(name) for name in keys_of(model, *stages, prefix=prefix)}


def read_key_lines(lines: Iterable[Any]) -> dict[str, Any]:
    """Keys by their own names, from parameters among which `key_line` has made some."""
    pairs = [line.partition(": ") for line in lines if isinstance(line, str) and ": " in line]
    return {name.rpartition(".")[2]: json.loads(value) for name, _, value in pairs}
