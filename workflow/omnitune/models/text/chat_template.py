"""Chat templates: programs of strangers, run in a sandbox that counts what they do, in any thread."""

import json
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE = 20_000  # characters, each of which may be a step of compiling it; published ones have some thousand
# Steps of loops, calls, and characters that are made or looked at; the published template takes some hundred beside ten
# for each character of the instruction.
WORK = 200_000
WORK_PER_CHARACTER = 100

# What takes no more than it is given, or is counted below; `center`, `format`, `indent` and others make text of any
# size.
FILTERS = {
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
}  # fmt: skip
METHODS = {
    "capitalize", "count", "endswith", "find", "get", "index", "isalpha", "isdigit", "islower", "isspace", "isupper",
    "items", "join", "keys", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "title", "upper", "values",
}  # fmt: skip
VALUES = (str, bytes, int, float, list, tuple, dict, range)

_left: ContextVar[list[int]] = ContextVar("left")


class _TooMuchWorkError(Exception):
    pass


def render_chat(template: str, messages: list[dict[str, Any]], *, generation: bool = False, **values: Any) -> str:
    """The text that a template makes of messages, as the library renders it.

    Args:
        template: its source.
        messages: `role` and `content` of each: a text, or a list of parts where images are among them.
        generation: whether the prompt for the model's answer stands at the end.
        values: what else it may name, such as the tokenizer's special tokens.

    Raises:
        ValueError: for a template that is wrong, or does more than WORK and WORK_PER_CHARACTER of the messages allow.
    """
    token = _left.set([WORK + WORK_PER_CHARACTER * sum(_size(message["content"]) for message in messages)])
    try:
        known = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": generation}
        return _compiled(template).render(**known, **values)
    except _TooMuchWorkError:
        problem = "does more than a chat needs, and was stopped"
    except Exception as error:  # whatever a wrong program may raise
        problem = f"cannot be used: {str(error)[:200] or type(error).__name__}"
    finally:
        _left.reset(token)
    raise ValueError(f"the tokenizer's chat template {problem}.")


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"it has {len(template)} characters; at most {MAX_TEMPLATE} are allowed")
    return _Sandbox().from_string(template)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Charges for each step of a template before it is done, or after it where it cannot take much more than before."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_output,
            optimized=False,
        )
        own = {"tojson": _to_json, "join": _join, "replace": _replace, "charged": _charged, "counted": _counted}
        self.filters = {name: self.filters[name] for name in FILTERS} | own
        self.globals = {
            **{name: self.globals[name] for name in ("range", "dict")},  # the sandbox's range is one of 100,000 at most
            "namespace": _OwnNamespace,
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Charging().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = not isinstance(obj, VALUES) or attr in METHODS
        return known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """None: `format` is an attribute like others, and not among METHODS."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        size = _size(left) + _size(right)
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise SecurityError(f"`{operator}` is not allowed here")
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            value, times = (right, left) if isinstance(left, int) else (left, right)
            size = _size(value) * (times if isinstance(times, int) else 1)
        _charge(max(size, 1))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as its base)
        value, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        _charge(_size([value, args, kwargs]))
        if isinstance(value, str) and name in {"join", "replace"}:
            __obj = partial(_joined if name == "join" else _replace, value)
        return _charged(super().call(__context, __obj, *args, **kwargs))


class _Generation(Extension):
    """`{% generation %}` marks what a model would answer; its text is like any other."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _OwnNamespace(Namespace):
    """A namespace that holds no names of Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")
        super().__setitem__(name, value)


class _Charging(NodeTransformer):
    """Puts a filter that charges around what may grow or go on for long."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise SecurityError("a loop that calls itself is not allowed here")
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _wrapped(node.iter, "counted", nodes.Const(1 + text))
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.node is not None:
            node.node = _wrapped(node.node)
        return _wrapped(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _wrapped(node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _wrapped(node.expr)
        for operand in node.ops:
            operand.expr = _wrapped(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(node)

    visit_List = visit_Dict = visit_Concat  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(node) if isinstance(node.arg, nodes.Slice) else node

    def visit_AssignBlock(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _wrapped(node.filter)
        return node

    visit_FilterBlock = visit_AssignBlock  # noqa: N815


def _wrapped(node: Any, name: str = "charged", *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=getattr(node, "lineno", 1))


def _charge(work: int) -> None:
    left = _left.get()
    left[0] -= work
    if left[0] < 0:
        raise _TooMuchWorkError


def _charged(value: Any) -> Any:
    _charge(_size(value))
    return value


@pass_context  # so that none is made when a template is compiled
def _output(context: Context, value: Any) -> Any:
    return _charged(value)


def _counted(items: Iterable[Any], work: int) -> Iterator[Any]:
    for item in items:
        _charge(work)
        yield item


def _size(value: Any) -> int:
    """Characters and items of a value, each counted as often as it stands in it."""
    if isinstance(value, str | bytes):
        return 1 + len(value)
    if isinstance(value, dict):
        return 1 + sum(_size(name) + _size(inner) for name, inner in value.items())
    if isinstance(value, list | tuple | set):
        return 1 + sum(map(_size, value))
    if isinstance(value, _OwnNamespace):
        return 1 + _size(value._Namespace__attrs)
    return 1 + (value.bit_length() // 8 if isinstance(value, int) else 0)


def _joined(text: str, items: Iterable[Any]) -> str:
    found = list(items)
    _charge(_size(found) + len(text) * len(found))
    return text.join(map(str, found))


def _join(items: Iterable[Any], text: str = "") -> str:
    return _joined(text, items)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    _charge(text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    if indent and not 0 <= indent <= 16:
        raise ValueError("tojson takes an indent of 16 at most")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
