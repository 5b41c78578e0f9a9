"""The one reader of YAML: small files, whose aliases and merge keys cannot grow beyond a limit, with each key once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.resolver import Resolver

from omnitune.errors import ConfigError, shown
from omnitune.io.files import open_regular

MAX_BYTES = 4 << 20
MAX_NODES = 100_000  # keys and values, also once aliases and merge keys are written out
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]*[0-7][0-7_]*|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
MAX_DEPTH = 64  # mappings and lists inside each other


class _Loader(Composer, CParser, SafeConstructor, Resolver):
    """The safe loader over libyaml's events. It stops where a file has more or deeper nodes than one may have."""

    def __init__(self, path: Path) -> None:
        CParser.__init__(self, _text(path))
        for base in (Composer, SafeConstructor, Resolver):
            base.__init__(self)
        self.path, self.count, self.depth = path, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.count > MAX_NODES:
            raise ConfigError(f"{self.path}: has more than {MAX_NODES} keys and values. Take some out of it.")
        if self.depth > MAX_DEPTH + 1:  # the mapping around all of it is one
            event: Any = self.peek_event()
            raise ConfigError(
                f"{self.path}, line {event.start_mark.line + 1}: is nested more than {MAX_DEPTH} levels deep."
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: for a missing file, bad YAML or another top level; for a key that stands twice in one mapping, and
            a text with a NUL byte; for a file that is too large, or would be with its aliases written out.
    """
    path = Path(path)
    try:
        loader = _Loader(path)
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, path)
            _check_nodes(node, path)
        content = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(path, error)) from None
    except ConfigError:
        raise
    except ValueError as error:  # a date or number that cannot be one
        raise ConfigError(f"{path}: not valid YAML: {error}.") from None
    except (AttributeError, LookupError, TypeError) as error:  # what PyYAML makes of `!!bool zz` or `!!int ""`
        raise ConfigError(f"{path}: not valid YAML: a value is not what its tag says ({error}).") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: the top level must be a mapping of keys, found {found}.")
    return content


def _yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    mark, begin = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else f"{path}"
    problem = str(getattr(error, "problem", None) or error)[:200]
    if mark and begin and begin.line != mark.line:
        problem += f", {getattr(error, 'context', '')} from line {begin.line + 1} on"
    return f"{where}: not valid YAML: {problem}."


def line_of(path: Path, fits: Callable[[str], bool]) -> int | None:
    """The first line of a YAML file, which can be read, with a text that fits; None without any."""
    root = _Loader(path).get_single_node()
    pending = [] if root is None else [root]
    while pending:
        node = pending.pop(0)
        if isinstance(node, yaml.ScalarNode) and fits(node.value):
            return int(node.start_mark.line) + 1
        pending += _children(node)
    return None


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
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


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_size(root: yaml.Node, path: Path) -> None:
    """Counts what the nodes would be with each alias written out; a shared node is gone through once."""
    known: dict[int, tuple[int, int]] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        """Nodes, and levels of them."""
        if id(node) in above:
            raise ConfigError(f"{path}, line {node.start_mark.line + 1}: an anchor holds an alias of itself.")
        if id(node) not in known:
            above.add(id(node))
            inner = [size(child) for child in _children(node)]
            known[id(node)] = 1 + sum(count for count, _ in inner), 1 + max((levels for _, levels in inner), default=0)
            above.remove(id(node))
        return known[id(node)]

    count, levels = size(root)
    if count > MAX_NODES or levels > MAX_DEPTH + 1:
        raise ConfigError(
            f"{path}: has more than {MAX_NODES} keys and values, or more than {MAX_DEPTH} levels of them, with its "
            "aliases written out. Take aliases out of it."
        )


def _check_nodes(root: yaml.Node, path: Path) -> None:
    """Refuses what YAML would read as something else without a word, and texts that can be no path and no name."""
    pending, done = [("", root)], set()
    while pending:
        key, node = pending.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_mapping(node, path)
            pending += [(key, name) for name, _ in node.value]
            pending += [(_below(key, name), value) for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(_below(key, number), item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode):
            _check_number(node, path)
            _check_text(node, key, path)


def _below(key: str, name: yaml.Node | int) -> str:
    """The key of what a mapping or list at `key` holds under a name."""
    own = name.value if isinstance(name, yaml.ScalarNode) else name if isinstance(name, int) else "?"
    return f"{key}.{own}".removeprefix(".")


def _check_text(node: yaml.ScalarNode, key: str, path: Path) -> None:
    if "\0" in node.value:
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: {shown(key)}: {shown(node.value)} holds a NUL byte, which no "
            "path has. Take it out."
        )


def _check_number(node: yaml.ScalarNode, path: Path) -> None:
    """Refuses 0400, which is 256 in YAML 1.1, and 10:00, which is 600."""
    number = node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    if number and OTHER_BASE.fullmatch(node.value):
        base = "a number of base 60" if ":" in node.value else "octal"
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: {node.value} would be read as {base}. Write it without leading "
            "zeros and colons, or in quotes if it is a text."
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
