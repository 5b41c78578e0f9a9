"""GEdit-Bench: a table with `key`, `task_type`, `instruction`, `instruction_language` and the image inside.

The scorer reads {method}/fullset/{task_type}/{language}/{key}.png, and beside it the input as {key}_SRCIMG.png.
"""

import io
from collections.abc import Iterator

from omnitune.config import Benchmark
from omnitune.evaluation.formats.source import LaidOut, Layout, SourcePrompt, text_of
from omnitune.evaluation.formats.tables import image_bytes, read_rows
from omnitune.evaluation.prompts import open_image

TEXTS = ("key", "task_type", "instruction", "instruction_language")
IMAGE = "input_image"


def read(benchmark: Benchmark, pixels: bool) -> Iterator[SourcePrompt]:
    """The rows of the table; a key is its own in a task and language alone."""
    for where, file, row in read_rows(benchmark, TEXTS, [IMAGE], pixels):
        key, task, instruction, language = (text_of(row, name, where) for name in TEXTS)
        image = image_bytes(row[IMAGE], IMAGE, where) if pixels else None
        official = {"key": key, "language": language}
        name = f"{task}-{language}-{key}"
        yield SourcePrompt(where, file, name, "edit", instruction, task, (image,), official)


def lay_out(drawn: LaidOut) -> Layout:
    """The image and its input."""
    prompt, [image] = drawn.prompt, drawn.images
    if image is None or prompt.official is None:
        return {}
    stem = f"{drawn.method}/fullset/{prompt.category}/{prompt.official['language']}/{prompt.official['key']}"
    source = io.BytesIO()
    open_image(prompt.input_images[0]).save(source, format="PNG")
    return {f"{stem}.png": image, f"{stem}_SRCIMG.png": source.getvalue()}
