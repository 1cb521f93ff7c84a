"""State that belongs to one process and is built anew in a forked child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_PATIENCE = 1.0
"""Longest time, in seconds, that the end of a process waits for a value that another thread builds."""

T = TypeVar("T")


class PerProcess(Generic[T]):
    """
    Builds a value on first use in each process.

    A forked child inherits locks in the state that they had, and counts that
    its parent will export: it must not touch the inherited value, and has none
    from the moment on at which Python runs in it. The value is kept referenced,
    so that no finaliser runs its code in the child.
    """

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self.value: T | None = None
        """That of this process, if it was built: what every request asks for."""
        self._owner = 0
        self._retired: list[object] = []
        # A finaliser, or a handler of signals, may come in the middle of building.
        self._lock = threading.RLock()
        self._building = False
        os.register_at_fork(after_in_child=self._drop)

    def get(self) -> T:
        """Return the value of this process, building it if need be. RuntimeError in the middle of building it."""
        value = self.value
        if value is None:
            with self._lock:
                value = self.value
                if value is None:
                    self._owner, value = os.getpid(), self._built()
                    self.value = value
        return value

    def _built(self) -> T:
        if self._building:
            raise RuntimeError("asked for by whoever builds it")
        self._building = True
        try:
            return self._build()
        finally:
            self._building = False

    def peek(self) -> T | None:
        """Return the value of this process if it was built. A handler of signals may ask before a fork is over."""
        value = self.value
        return value if self._owner == os.getpid() else None

    def discard(self, only: T | None = None) -> T | None:
        """Forget and return the value of this process, or this one only; the next use builds anew. Never waits long."""
        locked = self._lock.acquire(timeout=_PATIENCE)
        try:
            value = self.peek()
            if only is not None and value is not only:
                return None
            self.value = None
        finally:
            if locked:
                self._lock.release()
        return value

    def _drop(self) -> None:
        self._retired.append(self.value)
        self.value = None
        self._lock = threading.RLock()
        self._building = False
