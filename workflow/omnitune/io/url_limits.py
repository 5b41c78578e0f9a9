"""How much is read from the URLs that a data set names, how long, and from where: in force for a block of code."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import unquote

from omnitune.errors import Refused

MB = 1_000_000


@dataclass(frozen=True)
class UrlLimits:
    """What holds for URLs that a data set names: the keys of `data.urls`, see UrlOptions."""

    response_mb: int = 256
    response_seconds: int = 60
    row_mb: int = 512
    row_seconds: int = 180
    samples_mb: int = 10_000
    samples_seconds: int = 7200
    private_networks: tuple[str, ...] = ()

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "UrlLimits":
        """From the keys of `data.urls`."""
        values = {limit.name: keys[limit.name] for limit in fields(cls)}
        return cls(**{**values, "private_networks": tuple(values["private_networks"])})


USUAL = UrlLimits()


@dataclass
class Budget:
    """What is left of the limits: of a row, which may ask for several answers, or of a .jsonl file, which is one.

    Attributes:
        limits: what was allowed.
        roots: URLs below which redirects over HTTP must stay; none: they may lead anywhere.
        whole: of what all answers together are.
    """

    limits: UrlLimits
    roots: tuple[str, ...]
    whole: Literal["row", "samples"]
    read: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def answer(self) -> str:
        """Whose limits each answer has."""
        return "response" if self.whole == "row" else self.whole

    def seconds(self, url: str) -> float:
        """For the next answer."""
        left = self._limit(self.whole, "seconds") + self.started - time.monotonic()
        if left <= 0:
            raise self.too_slow(url)
        return min(left, self._limit(self.answer, "seconds"))

    def bytes(self) -> int:
        """For the next answer."""
        return min(self._limit(self.answer, "mb") * MB, self._limit(self.whole, "mb") * MB - self.read)

    def add(self, size: int, url: str) -> None:
        """Counts an answer; refuses it as `check` does."""
        self.check(size, url)
        self.read += size

    def check(self, size: int, url: str) -> None:
        """Refuses an answer of more bytes than it may have: too_many_bytes."""
        if size > self.bytes():
            name = self.answer if size > self._limit(self.answer, "mb") * MB else self.whole
            key, limit = f"data.urls.{name}_mb", self._limit(name, "mb")
            raise Refused("too_many_bytes", f"{url} has more bytes than {key} allows ({limit} MB)")

    def too_slow(self, url: str) -> Refused:
        """The verdict on an answer that took all of its time."""
        over = time.monotonic() - self.started >= self._limit(self.whole, "seconds")
        name = self.whole if over else self.answer
        key, limit = f"data.urls.{name}_seconds", self._limit(name, "seconds")
        return Refused("too_slow", f"{url} takes longer than {key} allows ({limit} seconds)")

    def _limit(self, name: str, unit: str) -> int:
        limit: int = getattr(self.limits, f"{name}_{unit}")
        return limit


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def fetching(
    limits: UrlLimits, roots: Sequence[str | None] = (), whole: Literal["row", "samples"] = "row"
) -> Iterator[None]:
    """Puts the limits of a row or of a .jsonl file into force until the block ends."""
    token = _budget.set(Budget(limits, tuple(filter(None, roots)), whole))
    try:
        yield
    finally:
        _budget.reset(token)


def budget() -> Budget | None:
    """That in force; None for what no stranger names, such as tars of our own."""
    return _budget.get()


def is_below_url(url: str, root: str) -> bool:
    """Whether a URL lies below another one."""
    # A service may take `..`, also as %2e%2e, for the folder above; there is no honest use of it in a URL.
    climbs = ".." in re.split(r"[/\\]", unquote(unquote(url)))
    return not climbs and url.startswith(f"{root.rstrip('/')}/")
