"""Values out of bytes: a fuzzer that changes these changes those."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Drawn:
    """Reads on from where it is; beyond the end all is zero, empty or the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        begin, self._at = self._at, self._at + count
        return self._data[begin : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def number(self) -> int:
        """0 to 255."""
        return int.from_bytes(self.take(1), "little")

    def some(self) -> bool:
        return self.number() % 2 == 1

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.number() % len(choices)]

    def content(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        """Any, half a surrogate pair included."""
        return self.content().decode("utf-8", "surrogateescape")

    def whole(self) -> int:
        """Of any size: most fit into 64 bits."""
        return int.from_bytes(self.take(self.one_of((1, 2, 4, 7, 8, 9, 200))), "little", signed=True)

    def unsigned(self) -> int:
        """64 bits."""
        return int.from_bytes(self.take(8), "little")

    def real(self) -> float:
        """Any, infinity and what is no number included."""
        found: float = struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0]
        return found

    def scalar(self, words: Sequence[str] = ()) -> str | bool | int | float | None:
        kind = self.number() % 7
        if kind < 3:
            return (None, True, False)[kind]
        if kind == 6 and words:
            return self.one_of(words)
        return (self.whole, self.real, self.text)[kind % 3]()

    def value(self, words: Sequence[str] = (), depth: int = 3) -> Any:
        """What JSON can hold; ``words`` are among its strings and keys."""
        kind = self.number() % 4 if depth else 0
        if kind < 2:
            return self.scalar(words)
        parts = [self.value(words, depth - 1) for _ in range(self.number() % 8)]
        if kind == 2:
            return parts
        return {(self.one_of(words) if words and self.some() else self.text()): part for part in parts}
