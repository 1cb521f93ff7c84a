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
        self._live: tuple[int, T] | None = None
        self._retired: list[object] = []
        # A finaliser, or a handler of signals, may come in the middle of building.
        self._lock = threading.RLock()
        self._building = False
        os.register_at_fork(after_in_child=self._drop)

    def get(self) -> T:
        """Return the value of this process, building it if need be. RuntimeError in the middle of building it."""
        live = self._live  # every request asks: the process's id, a system call, is left to those that are at an end
        if live is None:
            with self._lock:
                live = self._live
                if live is None:
                    live = self._live = os.getpid(), self._built()
        return live[1]

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
        live = self._live
        return live[1] if live is not None and live[0] == os.getpid() else None

    def discard(self, only: T | None = None) -> T | None:
        """Forget and return the value of this process, or this one only; the next use builds anew. Never waits long."""
        locked = self._lock.acquire(timeout=_PATIENCE)
        try:
            value = self.peek()
            if only is not None and value is not only:
                return None
            self._live = None
        finally:
            if locked:
                self._lock.release()
        return value

    def _drop(self) -> None:
        self._retired.append(self._live)
        self._live = None
        self._lock = threading.RLock()
        self._building = False
