"""Options that build on others: `extends` in an options file, and the variants that a sweep makes of one."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from omnitune.config.base import ModelT, check_config
from omnitune.config.workflow import Sweep
from omnitune.config.yaml_file import read_yaml
from omnitune.errors import ConfigError
from omnitune.io.files import is_plain_file

EXTENDS = "extends"
OWN = ("name", EXTENDS)  # keys that a file does not take from the one that it extends, and no sweep sets
MAX_NAME = 150  # letters of a variant's name, which names folders and files
MAX_VARIANTS = 1000
MAX_LAYERS = 32  # options files that extend each other in a row


@dataclass(frozen=True)
class Layer:
    """Options as one file has them.

    Attributes:
        where: the file.
        content: its keys.
    """

    where: str
    content: Mapping[str, Any]

    def has(self, location: Sequence[int | str]) -> bool:
        """Whether a key stands there."""
        found: Any = self.content
        for part in location:
            if not isinstance(found, Mapping):  # a list is taken as a whole
                return True
            if part not in found:
                return False
            found = found[part]
        return True


def read_layers(path: Path) -> list[Layer]:
    """An options file and those that it extends, one after the other, itself first.

    Raises:
        ConfigError: for files that extend each other in a circle, and what `read_yaml` refuses.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        content = read_yaml(path)
        layers.append(Layer(str(path), content))
        seen.append(path)
        base = content.get(EXTENDS)
        if base is None:
            return layers
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{path}: extends: {base!r} is not allowed: needs the path of one options file.")
        following = path.parent / base
        if not is_plain_file(following):
            raise ConfigError(f"{path}: extends: {base!r} leads to {following}, which is no file.")
        if following.resolve() in [file.resolve() for file in seen]:
            circle = " -> ".join(map(str, [*seen, following]))
            raise ConfigError(f"{path}: extends: files extend each other in a circle: {circle}. Take one out.")
        if len(seen) == MAX_LAYERS:
            raise ConfigError(f"{seen[0]}: extends: leads through more than {MAX_LAYERS} files. Write some into one.")
        path = following


def check_layers(layers: Sequence[Layer], model: type[ModelT]) -> ModelT:
    """Checks options that are written in several layers, the first one over the others; raises ConfigError."""
    content: dict[str, Any] = {}
    for layer in reversed(layers):
        content = merged({key: value for key, value in content.items() if key not in OWN}, layer.content)
    content.pop(EXTENDS, None)

    def written_in(location: Sequence[int | str]) -> str | None:
        found = next((layer.where for layer in layers if layer.has(location)), None)
        return None if found == layers[0].where else found

    return check_config(content, model, layers[0].where, written_in)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; what both have is that of `above`, lists as a whole."""
    found = dict(below)
    for key, value in above.items():
        sections = isinstance(found.get(key), Mapping) and isinstance(value, Mapping)
        found[key] = merged(found[key], value) if sections else value
    return found


Variants = dict[str, tuple[ModelT, dict[str, Any]]]


def variants_of(sweep: Sweep, model: type[ModelT], where: str) -> tuple[str, Variants[ModelT]]:
    """Name of the options that are varied, and of each variant by its name its options and the sweep's keys and values.

    Args:
        sweep: what is varied.
        model: of the options.
        where: the file that holds the sweep.

    Raises:
        ConfigError: for an unknown key or a value that is not allowed, two variants of one name, or too many.
    """
    base = read_layers(Path(sweep.options))
    name: str = check_layers(base, model).model_dump()["name"]
    for key in sweep.set.keys() & OWN:
        raise ConfigError(f"{where}: sweep.set.{key}: is not allowed; the names of variants follow from their values.")
    count = math.prod(map(len, sweep.set.values()))
    if count > MAX_VARIANTS:
        raise ConfigError(f"{where}: sweep.set: makes {count} experiments of {sweep.options}; at most {MAX_VARIANTS}.")
    found: Variants[ModelT] = {}
    for values in itertools.product(*sweep.set.values()):
        keys = dict(zip(sweep.set, values, strict=True))
        options = check_layers([_layer(f"{where}: sweep", name, keys), *base], model)
        read = {key: value_at(options, key) for key in keys}
        own = variant_name(name, read)
        if own in found or len(own) > MAX_NAME:
            problem = (
                "two of its values come to the name" if own in found else f"more than {MAX_NAME} letters in the name"
            )
            raise ConfigError(
                f"{where}: sweep.set: {problem} {own!r}. Take one out, or write options files of their own, which "
                f"extend {sweep.options}."
            )
        found[own] = options.model_copy(update={"name": own}), read
    return name, found


def _layer(where: str, name: str, keys: Mapping[str, Any]) -> Layer:
    """The keys of a variant as an options file would have them."""
    content: dict[str, Any] = {"name": name}
    for key, value in keys.items():
        section: Any = value
        for part in reversed(key.split(".")):
            section = {part: section}
        content = merged(content, section)
    return Layer(where, content)


def value_at(options: BaseModel, key: str) -> Any:
    """The checked value of a key by its full name, as JSON holds it."""
    found: Any = options.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    return found


def differing_options(options: Mapping[str, BaseModel]) -> dict[str, dict[str, Any]]:
    """By name of the options, those of their keys in which any two differ, with their values; names apart."""
    flat = {name: dict(_leaves(found.model_dump(mode="json"))) for name, found in options.items()}
    keys = [key for key in dict.fromkeys(key for found in flat.values() for key in found) if key not in OWN]
    differing = [key for key in keys if len({json.dumps(found.get(key)) for found in flat.values()}) > 1]
    return {name: {key: found.get(key) for key in differing} for name, found in flat.items()}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def variant_name(name: str, keys: Mapping[str, Any]) -> str:
    """As `mine-learning_rate-1e-05`: the last part of each key, where it is the only such one, and its value."""
    last = [key.rpartition(".")[2] for key in keys]
    words = [name]
    for key, short in zip(keys, last, strict=True):
        text = "_".join(_words(keys[key]))
        words += [short if last.count(short) == 1 else key, re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "_"]
    return "-".join(words)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for entry in value:
            yield from _words(entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _words(entry)
    elif isinstance(value, float):
        yield f"{value:g}" if float(f"{value:g}") == value else repr(value)
    else:
        yield value if isinstance(value, str) else json.dumps(value)
