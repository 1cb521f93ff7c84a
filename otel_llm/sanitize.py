"""
Every string and number from outside passes here before the SDK sees it.

One lone surrogate in a span name loses a whole export batch in the SDK, and an
object whose ``__str__`` raises raises into the caller. Nothing here raises.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

TEXT_LIMIT: Final = 256
"""Longest string that leaves, in characters."""

SECONDS_LIMIT: Final = 1e7
"""Longest duration that is believed, 115 days."""

OTHER: Final = "_other"
INVALID: Final = "_invalid"
_REPLACEMENT: Final = "\ufffd"


def text(value: object, limit: int = TEXT_LIMIT) -> str:
    """Printable, encodable, at most ``limit`` characters; ``_invalid`` if it is no scalar."""
    try:
        if type(value) is not str:
            if not isinstance(value, (str, int, float)):
                return INVALID
            value = str(value)
        cut = value[:limit]
        if cut.isascii() and cut.isprintable():
            return cut
        cut = cut.encode("utf-8", "replace").decode("utf-8")
        return "".join(character if character.isprintable() else _REPLACEMENT for character in cut)
    except Exception:  # a subclass of str or int may do anything
        return INVALID


def count(value: object) -> int | None:
    """A plain non-negative 64-bit integer, or None."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def number(value: object) -> float | None:
    """A plain non-negative finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < 1 << 63 else None


def label(value: str | None, served: Container[str]) -> str:
    """The value if it is a served name, else ``_other``: series stay bounded."""
    return text(value) if value is not None and value in served else OTHER
