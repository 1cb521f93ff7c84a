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
    failed: bool = False
    """Whether its status is an error."""
    children: Iterable[SpanData] = ()
    """Read once, and only if the span is recorded."""
