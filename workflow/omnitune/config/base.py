"""What all configuration models share: strictness, loading, and errors that a person can act on."""

import difflib
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from omnitune.config.yaml_file import read_yaml
from omnitune.errors import ConfigError
from omnitune.io.storage import redact
from omnitune.paths import local_problem, path_problem


class Section(BaseModel):
    """A group of keys. Unknown keys are errors: a misspelt key must never be a silently ignored one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=False)


ModelT = TypeVar("ModelT", bound=BaseModel)
PositiveInt = Annotated[int, Field(ge=1)]
SECRET = "secret"  # type of an error whose value is not repeated
SHOWN = 200  # characters of a value in a message
MAX_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]  # as torch takes them
Probability = Annotated[float, Field(ge=0, le=1)]


def _require_possible(path: str) -> str:
    problem = path_problem(path)
    if problem:
        raise ValueError(problem)
    return path


def _require_local(path: str) -> str:
    problem = local_problem(path)
    if problem:
        raise ValueError(problem)
    return path


PathOrUrl = Annotated[str, AfterValidator(_require_possible)]
PathText = Annotated[str, AfterValidator(_require_local)]  # a path, or what may be one


def load_config(path: Path | str, model: type[ModelT]) -> ModelT:
    """Reads and checks a YAML file against a model; raises ConfigError with every problem in one block."""
    path = Path(path)
    return check_config(read_yaml(path), model, str(path))


WrittenIn = Callable[[Sequence[int | str]], str | None]


def check_config(
    content: dict[str, Any], model: type[ModelT], where: str, written_in: WrittenIn = lambda location: None
) -> ModelT:
    """Checks loaded content against a model.

    Args:
        content: what was loaded.
        model: what it must be.
        where: the file that the errors name.
        written_in: of a key's place, the file that it stands in, where that is another one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            other = written_in(_location(detail))
            problems.append(_describe(detail, model) + (f" It stands in {other}." if other else ""))
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{where}: {count}", *(f"  - {problem}" for problem in problems)])) from None


def _describe(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = _location(detail)
    key = ".".join(str(part) for part in location) or "(file)"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key. {_nearest(location, model)}"
    if detail["type"] == "missing":
        return f"{key}: is required and missing."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == SECRET:
        return f"{key}: {message}."
    if detail["type"] == "value_error" and not location:
        return message
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):  # of a section's keys against each other
        return f"{key}.{message}."
    value = redact(repr(detail["input"]))
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}.."
    return f"{key}: {value} is not allowed: {message[0].lower()}{message[1:]}."


def _location(detail: ErrorDetails) -> list[int | str]:
    return [part for part in detail["loc"] if not _is_union_tag(part)]


def _is_union_tag(part: int | str) -> bool:
    """Pydantic puts the tried member of a union (`list[int]`) into an error's location; it is no key."""
    return isinstance(part, str) and (part in {"int", "str", "float", "bool"} or "[" in part)


def _nearest(location: list[int | str], model: type[BaseModel]) -> str:
    known = known_keys(location[:-1], model)
    elsewhere = [place for place in _places_of(str(location[-1]), model) if place not in known]
    close = elsewhere or difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known keys here: {', '.join(sorted(known))}."


def _places_of(name: str, model: type[BaseModel], prefix: str = "") -> list[str]:
    """The full names of all keys of that name: a key is often right, and in the wrong section."""
    found = []
    for key, field in model.model_fields.items():
        if key == name:
            found.append(f"{prefix}{key}")
        section = section_of(field.annotation)
        if section:
            found += _places_of(name, section, f"{prefix}{key}.")
    return found


def known_keys(location: list[int | str], model: type[BaseModel]) -> list[str]:
    """The keys that a model allows at a location such as ["train"]."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = current.model_fields.get(part)
        current = section_of(field.annotation) if field else None
    if current is None:
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section model inside an annotation such as `ArchOptions | None` or `list[Entry]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in {typing.Union, types.UnionType, list, tuple}:
        for argument in typing.get_args(annotation):
            found = section_of(argument)
            if found is not None:
                return found
    return None
