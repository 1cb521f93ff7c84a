"""
What was told and is not recorded yet.

Between two steps of an engine the processor's caches hold the engine, and the
same Python takes several times as long as in a loop of its own. So what the
serving thread does is to append; a thread of the pipeline's records many at a
time. Whoever collects, flushes or closes drains first: nothing is late for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from otel_llm import faults
from otel_llm.pipeline.pace import Pace

BATCH = 256
"""Waiting ones that wake the thread before its time, and that it does not dawdle with."""

FULL = 1024
"""Waiting ones from which on whoever appends records a piece of them too: nothing is left out, and few more wait."""

_SECONDS = 0.5
"""Longest time that the thread lets them wait."""

_PIECE = 0.001
"""Seconds of recording after which the thread lets others run; the interpreter alone would let them wait 5 ms."""

_PATIENCE = 0.001
"""Longest time, in seconds, that whoever finds it full waits for one who records a piece."""

FOREVER = -1.0
"""For a thread of the pipeline's own, which may wait as long as a recording takes."""

T = TypeVar("T")


class Backlog(Generic[T]):
    """Records in the order of ``put``, each once."""

    def __init__(self, record: Callable[[T], None]) -> None:
        self._record = record
        self._waiting: deque[T] = deque()
        self._lock = threading.Lock()  # of those that record; never waited for without end by the host's threads
        self._wake = threading.Event()
        self._closed = False
        self._pace = Pace()
        threading.Thread(target=self._run, name="otel-llm-records", daemon=True).start()

    def put(self, told: T) -> None:
        """Take it in. A finaliser may call it in the middle of a recording: it never waits for long."""
        self._waiting.append(told)
        waiting = len(self._waiting)
        if self._closed:
            self._work(0)
        elif waiting >= FULL:
            self._work(_PATIENCE, _PIECE)
        elif waiting >= BATCH and not self._wake.is_set():
            self._wake.set()

    def drain(self, seconds: float) -> None:
        """Record all that was told by now, unless another has been at it for so long: that may be the caller itself."""
        self._work(seconds)

    def close(self) -> None:
        """Record all that was told by now, and what comes later at once."""
        self._closed = True
        self._wake.set()
        self._work(FOREVER)

    def _work(self, patience: float, seconds: float = math.inf) -> None:
        while self._lock.acquire(timeout=patience):
            try:
                enough = time.monotonic() + seconds
                for _ in range(len(self._waiting)):
                    try:
                        self._record(self._waiting.popleft())
                    except Exception as error:
                        faults.swallow("emit", error)
                    if time.monotonic() > enough:
                        break
            finally:
                self._lock.release()
            if not (self._closed and self._waiting):
                return  # else somebody told after the end, found this one at it and left it to him

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(_SECONDS)
            self._wake.clear()
            while self._waiting:
                self._work(FOREVER, _PIECE)
                self._pace.nap(hurry=len(self._waiting) > BATCH)
