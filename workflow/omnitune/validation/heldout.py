"""Held-out samples of a training (val.data_path): their rows, and where their images lie. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from omnitune.errors import Refused, shown
from omnitune.io.jsonl import read_objects
from omnitune.io.storage import is_url, redact
from omnitune.paths import path_problem
from omnitune.validation.row import check_row


@dataclass(frozen=True)
class HeldOutRow:
    """A row of held-out samples.

    Attributes:
        key: file and line.
        where: the same for messages.
        task_type: t2i, edit or ic.
        instruction: what is asked for.
        images: files, inputs then output.
    """

    key: str
    where: str
    task_type: str
    instruction: str
    images: tuple[Path, ...]


def read_heldout_rows(path: Path, limit: int, instruction_keys: Sequence[str] = ("instruction",)) -> list[HeldOutRow]:
    """The first rows of a .jsonl file, in the format of training samples; keys that are no part of it are ignored.

    Raises:
        ValueError: with file and line, for a file or line that cannot be read, or an image that is not there.
    """
    if not path.is_file():
        raise ValueError(f"val.data_path: {path} does not exist.")
    rows: list[HeldOutRow] = []
    for number, content in islice(read_objects(path), limit):
        where = f"{path}:{number}"
        try:
            row = check_row(content, instruction_keys)
        except Refused as error:
            raise ValueError(f"{where}: {error.message}.") from None
        images = tuple(_place(name, path.parent, where) for name in (*row.input_images, row.output_image))
        rows.append(HeldOutRow(f"{path.stem}-{number:05d}", where, row.task_type, row.instruction, images))
    if not rows:
        raise ValueError(f"val.data_path: {path} holds no samples.")
    return rows


def _place(name: str, folder: Path, where: str) -> Path:
    if is_url(name):
        raise ValueError(
            f"{where}: the image {redact(name)!r} is a URL, which is not read here. Fetch it and name the file."
        )
    if problem := path_problem(name):
        raise ValueError(f"{where}: the image {shown(name)} {problem}.")
    tried = list(dict.fromkeys((folder / name, Path(name))))
    for path in tried:
        if path.exists():
            return path
    raise ValueError(f"{where}: the image {name!r} does not exist. Looked for {' and '.join(map(str, tried))}.")
