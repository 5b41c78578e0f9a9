"""ImgEdit's basic benchmark: a .json of one object, key to `id` (the image below a folder), `prompt` and `edit_type`.

The scorer reads {key}.png.
"""

from collections.abc import Iterator
from pathlib import Path

from omnitune.config import Benchmark
from omnitune.errors import shown
from omnitune.evaluation.formats.source import LaidOut, Layout, SourcePrompt, prompts_file, text_of
from omnitune.io.files import is_plain_file
from omnitune.io.jsonl import json_kind, read_object
from omnitune.io.places import require_below


def read(benchmark: Benchmark, pixels: bool) -> Iterator[SourcePrompt]:
    """The entries of a basic_edit.json, whose images lie below image_root, or else beside it."""
    path = prompts_file(benchmark)
    root = Path(benchmark.image_root) if benchmark.image_root else path.parent
    for key, entry in read_object(path).items():
        where = f"{path}: entry {shown(key)}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: needs an object, found {json_kind(entry)}.")
        name, instruction, task = (text_of(entry, name, where) for name in ("id", "prompt", "edit_type"))
        image = root / name
        if not is_plain_file(image):
            raise ValueError(
                f"{where}: id: {shown(name)}: does not exist below {str(root)!r}. `image_root` names the folder."
            )
        require_below(image, [root], f"{where}: id", "Put the image itself there")
        yield SourcePrompt(where, path, key, "edit", instruction, task, (image,))


def lay_out(drawn: LaidOut) -> Layout:
    """The image."""
    [image] = drawn.images
    return {} if image is None else {f"{drawn.method}/{drawn.prompt.line_key}.png": image}
