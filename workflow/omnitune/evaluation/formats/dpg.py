"""DPG-Bench: a folder of .txt files, a prompt each.

The scorer reads an image named as the prompt's file; of four images a grid of 2 x 2, whose cells it cuts by rows.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from omnitune.config import Benchmark
from omnitune.evaluation.formats.source import LaidOut, Layout, SourcePrompt
from omnitune.evaluation.prompts import MAX_INSTRUCTION, open_image
from omnitune.io.files import open_regular
from omnitune.io.places import require_below

MAX_BYTES = 4 * MAX_INSTRUCTION  # a character of UTF-8 has at most four


def read(benchmark: Benchmark, pixels: bool) -> Iterator[SourcePrompt]:
    """The prompts of a folder, by name."""
    folder = Path(benchmark.prompts)
    files = sorted(file for file in folder.glob("*.txt") if file.is_file() and not file.name.startswith("."))
    if not files:
        problem = "holds no .txt files" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"prompts: {benchmark.prompts!r}: {problem}. `format: dpg` reads a folder with a .txt a prompt."
        )
    for file in files:
        require_below(file, [folder], "prompts", "Put the file itself there")
        if "." in file.stem:
            raise ValueError(f"{file}: the scorer knows a prompt by its name up to the first dot. Rename the file.")
        yield SourcePrompt(str(file), file, file.stem, "t2i", _text(file))


def _text(file: Path) -> str:
    with open_regular(file) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{file}: has more than {MAX_BYTES} bytes, which no prompt needs.")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start + 1} is not UTF-8; save the file as UTF-8.") from None


def lay_out(drawn: LaidOut) -> Layout:
    """The image, or the grid; of a prompt of which an image is missing, none: a hole would be scored."""
    images = [image for image in drawn.images if image is not None]
    if len(images) < len(drawn.images):
        return {}
    return {f"{drawn.method}/{drawn.prompt.line_key}.png": images[0] if len(images) == 1 else _grid(images)}


def _grid(files: list[Path]) -> bytes:
    cells = [open_image(file) for file in files]
    width, height = cells[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for number, cell in enumerate(cells):
        grid.paste(cell, (number % 2 * width, number // 2 * height))
    content = io.BytesIO()
    grid.save(content, format="PNG")
    return content.getvalue()
