"""A span as plain data: what it says, before it is given an id or a form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

Value = str | bool | int | float | tuple[str, ...]


class SpanData(NamedTuple):
    """A span that has ended, and those below it. All strings are clean."""

    name: str
    start: int
    """Nanoseconds since the Unix epoch, like ``end``."""
    end: int
    attributes: Mapping[str, Value]
    """A ``MappingProxyType`` is the same object for every span that says the same, with nothing below it."""
    failed: bool = False
    """Whether its status is an error."""
    children: Iterable[SpanData] = ()
    """Read once, and only if the span is recorded."""
