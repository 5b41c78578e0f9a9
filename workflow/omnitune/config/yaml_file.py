"""The one reader of YAML: small files, whose aliases and merge keys cannot grow beyond a limit, with each key once."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from omnitune.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_NODES = 100_000  # keys and values once aliases and merge keys are written out
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]*[0-7][0-7_]*|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
MAX_DEPTH = 64  # mappings and lists inside each other


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: for a missing file, bad YAML or another top level; for a key that stands twice in one mapping; for
            a file that is too large, or would be with its aliases written out.
    """
    path = Path(path)
    text = _text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, path)
            _check_keys(node, path)
        content = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {problem}.") from None
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{path}: is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:  # a date or number that cannot be one
        raise ConfigError(f"{path}: not valid YAML: {error}.") from None
    except (AttributeError, LookupError, TypeError) as error:  # what PyYAML makes of `!!bool zz` or `!!int ""`
        raise ConfigError(f"{path}: not valid YAML: a value is not what its tag says ({error}).") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: the top level must be a mapping of keys, found {found}.")
    return content


def line_of(path: Path, fits: Callable[[str], bool]) -> int | None:
    """The first line of a YAML file, which can be read, with a text that fits; None without any."""
    root = yaml.SafeLoader(_text(path)).get_single_node()
    pending = [] if root is None else [root]
    while pending:
        node = pending.pop(0)
        if isinstance(node, yaml.ScalarNode) and fits(node.value):
            return int(node.start_mark.line) + 1
        pending += _children(node)
    return None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Check the path in the file that names it."
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES} bytes, which no file of options needs.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from None


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_size(root: yaml.Node, path: Path) -> None:
    """Counts what the nodes would be with each alias written out; a shared node is gone through once."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            raise ConfigError(f"{path}, line {node.start_mark.line + 1}: an anchor holds an alias of itself.")
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{path}, line {node.start_mark.line + 1}: is nested more than {MAX_DEPTH} levels deep.")
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            above.remove(id(node))
        return sizes[id(node)]

    if size(root) > MAX_NODES:
        raise ConfigError(
            f"{path}: has more than {MAX_NODES} keys and values with its aliases written out. Take aliases out of it."
        )


def _check_keys(root: yaml.Node, path: Path) -> None:
    """Refuses what YAML would read as something else without a word: a key that stands twice, numbers of other bases."""
    pending, done = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        pending += _children(node)
        if isinstance(node, yaml.MappingNode):
            _check_mapping(node, path)
        if isinstance(node, yaml.ScalarNode):
            _check_number(node, path)


def _check_number(node: yaml.ScalarNode, path: Path) -> None:
    """Refuses 0400, which is 256 in YAML 1.1, and 10:00, which is 600."""
    number = node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    if number and OTHER_BASE.fullmatch(node.value):
        base = "a number of base 60" if ":" in node.value else "octal"
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: {node.value} would be read as {base}. Write it without leading zeros "
            "and colons, or in quotes if it is a text."
        )


def _check_mapping(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"{path}: the key {key.value!r} stands on line {lines[name]} and again on line {line}. "
                    "Keep one of them."
                )
            lines[name] = line
