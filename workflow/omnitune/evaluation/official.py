"""The images of an evaluation a second time, laid out as the scorer of the prompts' format reads them."""

import logging
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from omnitune.config import Benchmark
from omnitune.config.choices import PROMPT_FORMATS
from omnitune.evaluation.formats.source import LaidOut
from omnitune.evaluation.prompts import Prompt
from omnitune.evaluation.results import read_generations, read_scores
from omnitune.io.files import atomic_folder
from omnitune.paths import names_folder

logger = logging.getLogger("omnitune")


def export_images(benchmark: Benchmark, prompts: Sequence[Prompt], folder: Path, output: Path, method: str) -> None:
    """Writes the layout, whole or not at all. What a scorer would take for an image that is missing is left out.

    Args:
        benchmark: its format has a layout.
        prompts: all of the benchmark's.
        folder: evaluation/{step}/{benchmark}, scored.
        output: the folder to write.
        method: what the scorer will know the weights by.

    Raises:
        ValueError: for images that are not those that were scored, or a prompt whose names lead elsewhere.
    """
    lay_out = PROMPT_FORMATS[benchmark.format].load_layout()
    rows = read_generations(folder, read_scores(folder))
    files, left_out, failed = 0, [], 0
    with atomic_folder(output) as temporary:
        for key, draws in groupby(prompts, key=lambda prompt: prompt.line_key):
            own = list(draws)
            images = tuple(_image(folder, rows[prompt.key]) for prompt in own)
            layout = lay_out(LaidOut(own[0], images, method))
            left_out += [] if layout else [key]
            failed += images.count(None)
            for name, content in layout.items():
                _write(temporary, name, content)
                files += 1
    logger.info("%s: %d files for the scorer of %s", output, files, benchmark.format)
    if failed:
        gone = ", ".join(left_out) or "none"
        logger.warning("%d images are missing, as drawing them failed; prompts left out: %s", failed, gone)


def _image(folder: Path, row: dict[str, str | None]) -> Path | None:
    return folder / row["image"] if row["image"] else None


def _write(folder: Path, name: str, content: Path | bytes) -> None:
    """Writes one file. Images are copied: a scorer may write where it reads."""
    if not all(map(names_folder, name.split("/"))):
        raise ValueError(f"{name!r} is no name for a file of the official layout.")
    path = folder / name
    if path.exists():
        raise ValueError(f"{name!r} is the file of two prompts in the official layout. Rename one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
