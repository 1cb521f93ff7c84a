"""Functions of an engine that take longer for a while, in this process or in the workers of vLLM."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Times = list[tuple[int, int]]
"""When each slow call began and ended, in monotonic nanoseconds."""

WORKER = "tests.engines.slow.Worker"
"""``worker_extension_cls`` of vLLM."""


@contextmanager
def slowed(owner: Any, method: str, seconds: float) -> Iterator[Times]:
    """Each call takes this much longer."""
    original, inherited = getattr(owner, method), method not in vars(owner)
    times: Times = []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic_ns()
        time.sleep(seconds)
        result = original(*args, **kwargs)
        times.append((began, time.monotonic_ns()))
        return result

    setattr(owner, method, slowly)
    try:
        yield times
    finally:
        if inherited:
            delattr(owner, method)
        else:
            setattr(owner, method, original)


class Worker:
    """What vLLM mixes into each of its workers, to be called by ``collective_rpc``."""

    def slow_down(self, owner: str, method: str, seconds: float) -> None:
        """What belongs to this worker, until ``speed_up``."""
        self.slow = slowed(operator.attrgetter(owner)(self), method, seconds)
        self.slow_times = self.slow.__enter__()

    def speed_up(self) -> Times:
        """Give the times since ``slow_down``."""
        self.slow.__exit__(None, None, None)
        return self.slow_times
