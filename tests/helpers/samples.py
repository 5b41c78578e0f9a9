"""Rows of samples and the pictures that they name, as a user writes them."""

import io
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from omnitune.validation.summary import summary_tables


def noisy_picture(width: int = 32, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


GOOD_ROW = {"task_type": "t2i", "instruction": "a cat", "output_image": "good.png"}


def write_lines(path: Path, *rows: dict | bytes, end: bytes = b"\n") -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(end.join(lines) + end)
    return path


def some_rows(count: int) -> list[dict | bytes]:
    bad = {**GOOD_ROW, "output_image": "nowhere.png"}
    edit = {"task_type": "edit", "instruction": "turn", "input_images": ["good.png"], "output_image": "good.png"}
    return [[GOOD_ROW, edit, GOOD_ROW, bad, b"{"][k % 5] for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_manifests(output: Path) -> dict[str, bytes]:
    """The manifests of shards by name, each of which has its SHA-256 beside it."""
    shards = output / "shards"
    manifests = {path.name: path.read_bytes() for path in sorted(shards.glob("*.jsonl"))}
    digests = {path.name: path.read_text() for path in shards.glob("*.sha256")}
    expected = {f"{Path(name).stem}.sha256": f"{sha256(data).hexdigest()}\n" for name, data in manifests.items()}
    assert digests == expected
    return manifests


def write_mixture(folder: Path, *names: str) -> Path:
    (folder / "mix.yml").write_text(json.dumps({"data": [{"path": str(folder / name)} for name in names]}))
    return folder / "mix.yml"


def rendered(summary: dict) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(*summary_tables(summary))
    return console.file.getvalue()
