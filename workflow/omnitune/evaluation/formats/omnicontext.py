"""OmniContext: a table with `key`, `task_type`, `instruction`, `instruction_language` and a list of images inside.

The scorer reads {model}/fullset/{task_type}/{key}.png.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from omnitune.config import Benchmark
from omnitune.evaluation.formats.source import LaidOut, Layout, SourcePrompt, text_of
from omnitune.evaluation.formats.tables import image_bytes, read_rows
from omnitune.io.jsonl import json_kind

TEXTS = ("key", "task_type", "instruction", "instruction_language")
IMAGES = "input_images"


def read(benchmark: Benchmark, pixels: bool) -> Iterator[SourcePrompt]:
    """The rows of the table; a key is its own in a task alone."""
    for where, file, row in read_rows(benchmark, TEXTS, [IMAGES], pixels):
        key, task, instruction, _ = (text_of(row, name, where) for name in TEXTS)
        images = [image_bytes(cell, IMAGES, where) for cell in _cells(row, where)] if pixels else [None]
        yield SourcePrompt(where, file, f"{task}-{key}", "ic", instruction, task, tuple(images), {"key": key})


def _cells(row: Mapping[str, Any], where: str) -> list[Any]:
    cells = row[IMAGES] or []
    if not isinstance(cells, list):
        raise ValueError(f"{where}: {IMAGES}: needs a list of images, found {json_kind(cells)}.")
    return cells


def lay_out(drawn: LaidOut) -> Layout:
    """The image."""
    prompt, [image] = drawn.prompt, drawn.images
    if image is None or prompt.official is None:
        return {}
    return {f"{drawn.method}/fullset/{prompt.category}/{prompt.official['key']}.png": image}
