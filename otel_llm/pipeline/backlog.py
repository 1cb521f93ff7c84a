"""
What was told and is not recorded yet.

Between two steps of an engine the processor's caches hold the engine, and the
same Python takes several times as long as in a loop of its own. So what the
serving thread does is to append; a thread of the pipeline's records many at a
time. Whoever collects, flushes or closes drains first: nothing is late for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from otel_llm import faults

BATCH = 64
"""Waiting ones that wake the thread before its time."""

FULL = 1024
"""Waiting ones from which on whoever appends records them too: nothing is ever left out."""

_SECONDS = 0.5
"""Longest time that the thread lets them wait."""

_BREATH = 8
"""Recorded ones after which the thread lets others run; the interpreter alone would let them wait 5 ms."""

T = TypeVar("T")


class Backlog(Generic[T]):
    """Records in the order of ``put``, each once."""

    def __init__(self, record: Callable[[T], None]) -> None:
        self._record = record
        self._waiting: deque[T] = deque()
        self._lock = threading.Lock()  # of those that record
        self._wake = threading.Event()
        self._closed = False
        threading.Thread(target=self._run, name="otel-llm-records", daemon=True).start()

    def put(self, told: T) -> None:
        """Take it in. Waits for nobody, so that a finaliser may call it in the middle of a recording."""
        self._waiting.append(told)
        waiting = len(self._waiting)
        if waiting >= FULL or self._closed:
            self._work(blocking=False)
        elif waiting >= BATCH and not self._wake.is_set():
            self._wake.set()

    def drain(self) -> None:
        """Record all that was told by now."""
        self._work()

    def close(self) -> None:
        """Record all that was told by now, and what comes later at once."""
        self._closed = True
        self._wake.set()
        self._work()

    def _work(self, breathe: Callable[[float], None] | None = None, *, blocking: bool = True) -> None:
        while self._lock.acquire(blocking):
            try:
                self._record_waiting(breathe)
            finally:
                self._lock.release()
            if not (self._closed and self._waiting):
                return  # else somebody told after the end, found this one at it and left it to him

    def _record_waiting(self, breathe: Callable[[float], None] | None) -> None:
        for number in range(1, len(self._waiting) + 1):
            try:
                self._record(self._waiting.popleft())
            except Exception as error:
                faults.swallow("emit", error)
            if breathe is not None and number % _BREATH == 0:
                breathe(0.0002)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(_SECONDS)
            self._wake.clear()
            self._work(time.sleep)
