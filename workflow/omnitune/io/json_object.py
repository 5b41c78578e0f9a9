"""Files that are one object of JSON and that others may have made: read within limits, and held against a model."""

import errno
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from omnitune.io.files import open_regular

JSON_LIMIT = 64 << 20  # bytes; the largest, of tokenizers, have half of that
MAX_NESTING = 32  # of the JSON that is read; a sample has two levels, and the ledger must be able to repeat it
LFS_POINTER = b"version https://git-lfs"
FETCH = "Fetch or write it again."
TAKE = "Take the file from where the weights are from."
# What pydantic puts into the place of a value that may be of several types.
UNION_TAG = re.compile(r"(constrained-)?(str|int|float|bool)|(list|dict|nullable)\[.*\]")
M = TypeVar("M", bound=BaseModel)


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a plain file; OSError for one that cannot be read, or has more bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data


def read_json(path: Path, limit: int = JSON_LIMIT, fix: str = FETCH) -> dict[str, Any]:
    """The JSON object in a file; ValueError, with the reason and `fix`, where there is none.

    Of a key that stands twice, readers take different ones: it is refused.
    """
    try:
        return parse_json(read_limited(path, limit))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). {fix}") from None
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read: {error}. {fix}") from None


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object in bytes; ValueError, with the reason alone, where there is none."""
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except _TwiceError as error:
        raise ValueError(f"the key {str(error)[:80]!r} stands twice in it") from None
    except (ValueError, RecursionError) as error:
        reason = f"it is no JSON ({error})"
        if not data:
            reason = "it is empty"
        elif data.startswith(LFS_POINTER):
            reason = "it is a pointer of git-lfs, not the file itself (`git lfs pull` fetches it)"
        raise ValueError(reason) from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


class _TwiceError(Exception):
    """Of a key in an object of JSON."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if json.dumps(value) != json.dumps(found[key]):
                raise _TwiceError(key)
    return found


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand inside each other more than so many levels deep."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(item, levels - 1) for item in inner)


def checked(path: Path | str, content: object, model: type[M], fix: str = TAKE) -> M:
    """The content of a JSON as its model; ValueError for the first value that it cannot take, with file and key."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"] if not UNION_TAG.fullmatch(str(step)))
        if first["type"] == "missing":
            raise not_allowed(path, "", None, f"{key}: is missing", fix) from None
        raise not_allowed(path, key, first["input"], first["msg"].removeprefix("Value error, "), fix) from None


def not_allowed(path: Path | str, key: str, value: object, reason: str, fix: str = TAKE) -> ValueError:
    """The sentence for a value of a base model's file; without a key for several values that do not fit."""
    said = f"{key}: {json.dumps(value)[:80]} is not allowed: {reason}" if key else reason
    return ValueError(f"{path}: {said}. {fix}")
