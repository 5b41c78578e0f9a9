"""Prompts in a published format: checked where they lie, and written as our own with their images beside them.

All behind it reads our format alone.
"""

import hashlib
from collections.abc import Iterator
from itertools import tee
from pathlib import Path
from typing import Any

from omnitune.config import Benchmark
from omnitune.config.choices import PROMPT_FORMATS
from omnitune.errors import Refused
from omnitune.evaluation.formats.source import SourcePrompt
from omnitune.evaluation.prompts import PromptLine, checked_lines
from omnitune.images.prepare import check_image
from omnitune.images.read import read_bytes
from omnitune.images.verdicts import MAX_PIXELS, most_bytes
from omnitune.io.files import atomic_folder, json_line
from omnitune.io.jsonl import MAX_LINE_BYTES
from omnitune.paths import IMPORTED

INPUTS = "inputs"  # folder of the images beside our prompts
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2"}


def is_foreign(benchmark: Benchmark) -> bool:
    """Whether its prompts are in another format than ours."""
    return PROMPT_FORMATS[benchmark.format].reader is not None


def as_imported(name: str, benchmark: Benchmark) -> Benchmark:
    """The same benchmark with prompts where an import writes them; as it is where they are our own."""
    if not is_foreign(benchmark):
        return benchmark
    return benchmark.model_copy(update={"prompts": IMPORTED.format(benchmark=name), "image_root": None})


def source_files(benchmark: Benchmark) -> list[Path]:
    """All files that an import reads, each once; ValueError for what is wrong in any, images inside them left out."""
    found: list[Path] = []
    try:
        for source, _ in _checked(benchmark, pixels=False):
            found += [source.file, *(image for image in source.images if isinstance(image, Path))]
    except OSError as error:
        raise ValueError(f"prompts: {benchmark.prompts!r}: cannot be read: {error}.") from None
    if not found:
        own = f" in language {benchmark.language!r}" if benchmark.language else ""
        raise ValueError(f"prompts: {benchmark.prompts!r}: holds no prompts{own}.")
    return list(dict.fromkeys(found))


def import_prompts(benchmark: Benchmark, output: Path) -> None:
    """Writes the prompts as our .jsonl, and their images, byte by byte, into `inputs` beside it: whole or not at all.

    Args:
        benchmark: its `format` and `prompts`.
        output: the .jsonl, in a folder of its own.

    Raises:
        ValueError: with file and line or row, for what is wrong in a prompt or its images.
    """
    with atomic_folder(output.parent) as folder:
        (folder / INPUTS).mkdir()
        with (folder / output.name).open("w", encoding="utf-8") as file:
            for source, line in _checked(benchmark, pixels=True):
                names = [_keep(image, source, folder) for image in source.images]
                content = {**line.model_dump(exclude_none=True), **({"input_images": names} if names else {})}
                text = json_line(content)
                if len(text.encode()) > MAX_LINE_BYTES:
                    raise ValueError(f"{source.where}: has more than {MAX_LINE_BYTES} bytes. Shorten it.")
                file.write(text)


def _checked(benchmark: Benchmark, pixels: bool) -> Iterator[tuple[SourcePrompt, PromptLine]]:
    """The prompts, as they stand there and as lines of ours, whose images have no names yet."""
    sources, again = tee(PROMPT_FORMATS[benchmark.format].load_reader()(benchmark, pixels))
    lines = checked_lines(map(_line, again), benchmark.draws)
    for source, (_, line) in zip(
        sources, lines, strict=False
    ):  # one for each, but that `lines` is not asked for its end
        yield source, line


def _line(source: SourcePrompt) -> tuple[str, dict[str, Any]]:
    """Where a prompt stands, and what a line of ours says of it."""
    images = [f"image {number}" for number in range(len(source.images))]
    return source.where, {
        "key": source.key,
        "task_type": source.task_type,
        "instruction": source.instruction,
        "category": source.category,
        "input_images": images or None,
        "official": source.official or None,
    }


def _keep(image: Path | bytes | None, source: SourcePrompt, folder: Path) -> str:
    """Writes an image that passes our reader, and gives its name in the folder: one file for equal images."""
    assert image is not None
    try:
        data = read_bytes(image, most_bytes(MAX_PIXELS)) if isinstance(image, Path) else image
        form = check_image(data, image if isinstance(image, Path) else "an image inside")
    except Refused as error:
        raise ValueError(f"{source.where}: {error.message}.") from None
    name = f"{INPUTS}/{hashlib.sha256(data).hexdigest()}.{EXTENSIONS.get(form, form.lower())}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name
