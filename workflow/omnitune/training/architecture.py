"""The architecture of the weights that a training starts from: as they say it, and as model.arch_opt does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.model import ArchOptions
from omnitune.io.json_object import read_json


def read_architecture(transformer: Path) -> dict[str, Any]:
    """Content of the config.json of a transformer's folder; empty where there is none."""
    path = transformer / "config.json"
    return read_json(path) if path.is_file() else {}


def differing_keys(asked: ArchOptions, found: Mapping[str, Any]) -> list[str]:
    """The keys of model.arch_opt that a transformer's config has with another value."""
    values = asked.model_dump()
    return [key for key, value in values.items() if key in found and _as_option(found[key]) != value]


def _as_option(value: Any) -> Any:
    """As options hold it: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def require_architecture(found: Mapping[str, Any], options: ExperimentOptions, folder: Path) -> None:
    """Raises ValueError if weights have another architecture than model.arch_opt says.

    Args:
        found: config of the loaded transformer.
        options: the experiment's.
        folder: where it was loaded from, for the message.
    """
    if options.model.arch_opt is None:
        return
    asked = options.model.arch_opt
    lines = [
        f"model.arch_opt.{key}: {getattr(asked, key)!r} is not what the weights have: {found[key]!r}"
        for key in differing_keys(asked, found)
    ]
    if lines:
        raise ValueError("\n  - ".join([f"{folder / 'config.json'} does not fit the options:", *lines]))


def expected_architecture(options: ExperimentOptions, transformer: Path) -> dict[str, Any]:
    """The transformer's config: its config.json where it is there already, else model.arch_opt.

    Raises:
        ValueError: where there is neither.
    """
    found = read_architecture(transformer)
    if found:
        return found
    if options.model.arch_opt is None:
        raise ValueError(
            f"{transformer / 'config.json'} is missing and model.arch_opt is not set, so the transformer's size is not "
            "known. Set model.arch_opt, or make the weights with `snakemake --cores 2 train`."
        )
    return options.model.arch_opt.model_dump()
