"""What the reader of a format gives and takes: prompts as their files say them, and images laid out for a scorer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.io.jsonl import json_kind


@dataclass(frozen=True)
class SourcePrompt:
    """A prompt in its published form.

    Attributes:
        where: file, and line or row, for messages.
        file: which file it stands in.
        key: names the image's file among ours.
        task_type: t2i, edit or ic.
        instruction: what the model is asked.
        category: the format's own name of the task, if it has one.
        images: the inputs, as files or their bytes; None for one that was not asked for.
        official: what the format's layout needs of it beside key and category.
    """

    where: str
    file: Path
    key: str
    task_type: str
    instruction: str
    category: str | None = None
    images: tuple[Path | bytes | None, ...] = ()
    official: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LaidOut:
    """The images of one prompt, to be laid out for the format's scorer.

    Attributes:
        prompt: the first of its images' prompts.
        images: the files of all of them, in order; None for one that is missing.
        method: what the scorer knows the model by.
    """

    prompt: Prompt
    images: tuple[Path | None, ...]
    method: str


# Path below `official` -> the file to copy, or the content. All lie in a folder named by the method: a scorer that
# takes every file of its folder for an image must not find what Snakemake keeps in a rule's.
Layout = dict[str, Path | bytes]


def prompts_file(benchmark: Benchmark) -> Path:
    """The file that `prompts` names; ValueError where it is none."""
    path = Path(benchmark.prompts)
    if not path.is_file():
        problem = "is no plain file" if path.exists() else "does not exist"
        raise ValueError(f"prompts: {benchmark.prompts!r}: {problem}. `format: {benchmark.format}` reads a file.")
    return path


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A value that must be a text; ValueError, with where it stands, for any other and where it is missing."""
    value = row.get(name)
    if not isinstance(value, str):
        found = f"found {json_kind(value)}" if name in row else "it is missing"
        raise ValueError(f"{where}: {name}: needs a text, {found}.")
    return value
