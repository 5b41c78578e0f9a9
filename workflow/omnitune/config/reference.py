"""config/README.md and the JSON schemas, written from the config models so that they cannot drift."""

import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from omnitune.config.affects import affects_of
from omnitune.config.base import Section, section_of
from omnitune.config.benchmarks.benchmark import Benchmark
from omnitune.config.choices import OneOf
from omnitune.config.experiment.options import ExperimentOptions
from omnitune.config.mixtures.mixture import Mixture
from omnitune.config.workflow import WorkflowConfig
from omnitune.io.files import write_text

MODELS: dict[str, tuple[type[Section], str]] = {
    "workflow": (WorkflowConfig, "config/config.yaml"),
    "options": (ExperimentOptions, "config/options/*.yml"),
    "mixture": (Mixture, "config/data/*.yml"),
    "benchmark": (Benchmark, "config/benchmarks/*.yml"),
}
INTRODUCTION = """# Configuration

Every key of every configuration file. This page and the JSON schemas in workflow/schemas are written by `omnitune
schema` from the models in workflow/omnitune/config; editors that know `# yaml-language-server: $schema=...` complete
and check keys.

Unknown keys are errors, and all files are checked before any job starts.

The last column says what a change makes again, and with it what stands behind that: base (the base model's folder),
samples (the verdict on each row), manifests (which rows are in which shard), shards, encodings, groups (which encodings
are made together), weights (the training; refused where there are checkpoints, unless it is to start over), checkpoints
(training goes on), evaluations (which checkpoints are evaluated, to which formats they are converted, and whether
images are exported), conversions, images, parts (how a benchmark is cut into jobs), judgements, scores, reports. Of
what names files, what is found there is compared. `nothing` runs nothing.
"""


def reference_files() -> dict[str, str]:
    """Path relative to the project -> content, of the reference page and each schema."""
    files = {"config/README.md": _page()}
    for name, (model, _) in MODELS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}
        if "extends" in model.model_fields:  # what a file lacks may stand in the one that it extends
            for section in (schema, *schema["$defs"].values()):
                section.pop("required", None)
        files[f"workflow/schemas/{name}.schema.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return files


def write_reference(project: Path) -> None:
    """Writes them below a project folder."""
    for path, content in reference_files().items():
        write_text(project / path, content)


def _page() -> str:
    parts = [INTRODUCTION]
    for model, where in MODELS.values():
        parts.append(f"## {where}\n\n{(model.__doc__ or '').strip()}\n\n" + "\n".join(_rows(model, "")) + "\n")
    return "\n".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = [] if prefix else ["| key | type | default | meaning | a change makes again |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        key = f"{prefix}{name}"
        rows.append(
            f"| `{key}` | {_type(field.annotation, field.metadata)} | {_default(field)} | "
            f"{_escape(field.description or '')} | {_affected(field)} |"
        )
        if section is not None:
            rows += _rows(section, f"{key}[]." if _is_list(field.annotation) else f"{key}.")
    return rows


def _is_list(annotation: Any) -> bool:
    """Whether it is a list, or may be one."""
    return any(typing.get_origin(member) is list for member in (annotation, *typing.get_args(annotation)))


def _type(annotation: Any, metadata: Iterable[Any]) -> str:
    limits = []
    for found in metadata:
        if isinstance(found, OneOf):
            annotation = Literal[tuple(found.names)]
        limits += [f"{sign} {getattr(found, attribute)}" for attribute, sign in _SIGNS if hasattr(found, attribute)]
    return _escape(", ".join([_type_name(annotation), *limits]))


_SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("multiple_of", "multiple of"))


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], [m for found in arguments[1:] for m in getattr(found, "metadata", [found])])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(a)}`" for a in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_type_name(a) for a in arguments)
    if origin in {list, tuple, dict}:
        return f"list of {_type_name(arguments[0])}" if origin is not dict else f"{_type_name(arguments[1])} by key"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "Any": "values",
        "NoneType": "null",
    }.get(annotation.__name__, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    return f"`{json.dumps(field.default)}`"


def _affected(field: FieldInfo) -> str:
    affects = affects_of(field)
    if affects is None:
        return ""
    return ", ".join([*affects.stages, *affects.parts]) or "nothing"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
