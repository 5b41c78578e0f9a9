"""Rows that are broken on purpose, so that the demo's validation has something to reject.

| reason | training file |
|---|---|
| the output image is missing | t2i |
| a truncated JPEG as output | t2i |
| a text file named .png as output | t2i |
| an empty instruction | t2i |
| no output image at all | t2i |
| an animation as output | t2i |
| a line that is no JSON | t2i |
| a line with the same key twice | t2i |
| an unknown task_type | edit |
| an empty list of input images | edit |
| an instruction that is a number | edit |
| a zero-byte file as input | edit |
| a folder as input image | edit |
| a decompression bomb as input | edit |
| the second input image is missing | in_context |
| a truncated PNG as first input | in_context |
| more input images than the model takes | in_context |
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]


def _file(root: Path, name: str, content: bytes) -> str:
    """Write a file below images/broken and return its path relative to the root."""
    path = root / "images" / "broken" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.relative_to(root).as_posix()


def _truncated(root: Path, row: Row, suffix: str) -> str:
    """The first half of an image of the given suffix that the row's own task already has, as a file of its own."""
    folder = (root / row["output_image"]).parent
    source = next(path for path in sorted(folder.iterdir()) if path.suffix == suffix)
    content = source.read_bytes()
    return _file(root, f"truncated{suffix}", content[: len(content) // 2])


def _animation(root: Path) -> str:
    """Three frames."""
    frames = [Image.new("RGB", (96, 96), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return _file(root, "animation.gif", buffer.getvalue())


def _bomb(root: Path) -> str:
    """A few kilobytes that claim 200 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    return _file(root, "bomb.png", buffer.getvalue())


def _folder(root: Path) -> str:
    path = root / "images" / "broken" / "folder.png"
    path.mkdir(parents=True, exist_ok=True)
    (path / ".keep").touch()  # an empty folder would not survive every way of copying the data set
    return path.relative_to(root).as_posix()


def _without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}


# Each takes a sound row and the root, and returns the line to write.
BREAKERS: dict[str, tuple[Callable[[Row, Path], Row], ...]] = {
    "t2i": (
        lambda row, root: {**row, "output_image": "images/broken/missing.png"},
        lambda row, root: {**row, "output_image": _truncated(root, row, ".jpg")},
        lambda row, root: {**row, "output_image": _file(root, "text.png", b"This is text, not an image.\n")},
        lambda row, root: {**row, "instruction": ""},
        lambda row, root: _without(row, "output_image"),
        lambda row, root: {**row, "output_image": _animation(root)},
    ),
    "edit": (
        lambda row, root: {**row, "task_type": "inpaint"},
        lambda row, root: {**row, "input_images": []},
        lambda row, root: {**row, "instruction": 42},
        lambda row, root: {**row, "input_images": [_file(root, "empty.jpg", b"")]},
        lambda row, root: {**row, "input_images": [_folder(root)]},
        lambda row, root: {**row, "input_images": [_bomb(root)]},
    ),
    "in_context": (
        lambda row, root: {**row, "input_images": [row["input_images"][0], "images/broken/missing.jpg"]},
        lambda row, root: {**row, "input_images": [_truncated(root, row, ".png"), row["input_images"][1]]},
        lambda row, root: {**row, "input_images": row["input_images"] * 3},
    ),
}
# The same for lines as text.
LINE_BREAKERS: dict[str, tuple[Callable[[str], str], ...]] = {
    "t2i": (
        lambda line: line[: len(line) // 2],
        lambda line: line.replace("{", '{"instruction": "a second one", ', 1),
    )
}
BROKEN_ROWS = sum(map(len, (*BREAKERS.values(), *LINE_BREAKERS.values())))
SPACING = 17  # sound lines between two broken ones


def break_rows(task: str, lines: list[str], root: Path) -> list[str]:
    """The lines of a training file with its broken rows put in between; every sound line stays."""
    broken = [json.dumps(breaker(json.loads(lines[k]), root)) for k, breaker in enumerate(BREAKERS.get(task, ()))]
    broken += [breaker(lines[0]) for breaker in LINE_BREAKERS.get(task, ())]
    result = list(lines)
    for k, line in enumerate(broken):
        result.insert((k + 1) * SPACING, line)
    return result
