"""The lines of .jsonl files, one at a time, however long the files or their lines are, and the JSON object on each.

Samples, held-out samples and prompts are all read by this module, so that a file that one of them takes the others
take.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omnitune.errors import ConfigError, Refused, shown
from omnitune.io import storage
from omnitune.io.files import open_regular
from omnitune.io.json_object import MAX_NESTING, is_deeper

MAX_LINE_BYTES = 1 << 20  # no sample needs more; a file without line ends must not be read as one line
MAX_FILE_BYTES = 16 << 20  # of a file that is one object
LINE_START = 2_000  # bytes that are kept of a line that is too long
MAX_BLANK_LINES = 100_000  # of a file that is read as a list of objects
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line of a source.

    Attributes:
        file: path or URL.
        number: in the file, from 1.
        ordinal: in the source, over all of its files, from 1.
        content: its bytes without line end and outer blanks; of a line that is too long only the start.
        too_long: whether it has more than MAX_LINE_BYTES.
        has_bom: whether the file's byte order mark stood before it.
    """

    file: str
    number: int
    ordinal: int
    content: bytes
    too_long: bool = False
    has_bom: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether nothing stands on it."""
        return not self.content and not self.too_long


@contextmanager
def local_copies(files: Sequence[str | Path], source_name: str, scratch: Path) -> Iterator[list[tuple[str, Path]]]:
    """(name, local path) of each file. Files at URLs are copied to `scratch`: no connection is held open for hours.

    Raises ConfigError where a file cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".lines-") as folder:
        yield [
            (str(file), _copy(str(file), Path(folder) / str(k), source_name) if storage.is_url(file) else Path(file))
            for k, file in enumerate(files)
        ]


def _copy(url: str, path: Path, source_name: str) -> Path:
    try:
        storage.copy(url, path)
    except Refused as error:
        raise ConfigError(f"source {source_name!r}: {error.message}.") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise _unreadable(url, source_name, error) from None
    return path


def count_lines(file: Path, source_name: str) -> int:
    """Number of lines of a local file; raises ConfigError where it cannot be read."""
    try:
        with open_regular(file) as stream:
            count, last = 0, b"\n"
            while chunk := stream.read(CHUNK):
                count, last = count + chunk.count(b"\n"), chunk[-1:]
            return count + (last != b"\n")
    except OSError as error:
        raise _unreadable(file, source_name, error) from None


def _unreadable(file: str | Path, source_name: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"source {source_name!r}: {file}: cannot be read ({error.strerror or error}). "
        "Check the path in the mixture, or run the rule that writes the file."
    )


def read_lines(files: Sequence[tuple[str, Path]]) -> Iterator[Line]:
    """All lines of a source's files, given as (name, local path). Blank ones too, as they count for the ordinal."""
    ordinal = 0
    for name, path in files:
        with open_regular(path) as stream:
            number = 0
            while content := stream.readline(MAX_LINE_BYTES + 1):
                number, ordinal = number + 1, ordinal + 1
                too_long = len(content) > MAX_LINE_BYTES and not content.endswith(b"\n")
                if too_long:
                    _skip_line(stream)
                    content = content[:LINE_START]
                has_bom = number == 1 and content.startswith(BOM)
                text = content.removeprefix(BOM) if has_bom else content
                yield Line(name, number, ordinal, text.strip(), too_long, has_bom)


def count_rows(file: Path) -> int:
    """Number of lines of a local file that are not blank."""
    return sum(1 for line in read_lines([(str(file), file)]) if not line.is_blank)


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line, from 1, and JSON object of each line of a local file that is not blank.

    Raises:
        OSError: where the file cannot be read.
        ValueError: with file and line, for a line that is too long, not UTF-8 or no JSON object, and for more than
            MAX_BLANK_LINES blank ones.
    """
    blank = 0
    for line in read_lines([(str(file), file)]):
        if line.is_blank:
            blank += 1
            if blank > MAX_BLANK_LINES:
                raise ValueError(f"{file}:{line.number}: more than {MAX_BLANK_LINES} lines are blank. Take them out.")
            continue
        try:
            content = decode_line(line)
        except Refused as error:
            raise ValueError(f"{file}:{line.number}: {error.message}.") from None
        yield line.number, content


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a local file is; raises ValueError, with the file, where it is none or too large."""
    with open_regular(file) as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{file}: has more than {MAX_FILE_BYTES} bytes.")
    try:
        return decode_line(Line(str(file), 1, 1, content.removeprefix(BOM)), "the file")
    except Refused as error:
        raise ValueError(f"{file}: {error.message}.") from None


def _skip_line(stream: IO[bytes]) -> None:
    """Goes on to the next line without holding the rest of this one."""
    while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
        pass


def decode_line(line: Line, name: str = "a line") -> dict[str, Any]:
    """The JSON object on a line, which messages call by `name`.

    Raises Refused: line_too_long, not_utf8, bad_json, duplicate_key or not_an_object.
    """
    if line.too_long:
        raise Refused("line_too_long", f"more than {MAX_LINE_BYTES} bytes; is the end of the line missing?")
    try:
        text = line.content.decode("utf-8")
        content = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
    except Refused:
        raise
    except UnicodeDecodeError as error:
        raise Refused("not_utf8", f"byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        hint = _json_hint(text)
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise Refused("bad_json", f"not valid JSON at {place}: {error.msg}{hint}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise Refused("bad_json", f"not readable as JSON: {error}") from None
    if is_deeper(content, MAX_NESTING):
        raise Refused("bad_json", f"nested more than {MAX_NESTING} levels deep")
    if not isinstance(content, dict):
        raise Refused("not_an_object", f"{name} must be a JSON object, found {json_kind(content)}{_json_hint(text)}")
    return content


def _json_hint(text: str) -> str:
    """Of what is JSON, but not one object a line."""
    if text.lstrip().startswith("["):
        return "; in a list of JSON? Write each sample on a line of its own: jq -c '.[]' FILE"
    return "; a comma stands behind the object" if text.rstrip().endswith("},") else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key that is there twice, of which a reader would take one or the other."""
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key = next(key for key in content if counts[key] > 1)
        raise Refused("duplicate_key", f"key {shown(key)} is there {counts[key]} times; keep one")
    return content


def _number(text: str) -> float:
    """Refuses NaN, Infinity and numbers of that size, which JSON does not have and the ledger could not repeat."""
    value = float(text)
    if not math.isfinite(value):
        raise Refused("bad_json", f"{shown(text)} is no number of JSON")
    return value


def json_kind(value: Any) -> str:
    """How JSON calls a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
