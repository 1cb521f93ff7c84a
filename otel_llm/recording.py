"""
A request in flight: what is fixed at its start, and its single end.

Engines and decorators keep one of these per request and close it with the
stamps that they have seen; the result is a ``Timeline``, emitted once, as a
``Draft`` from which it can be made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from otel_llm import faults
from otel_llm.timeline import Outcome, Timeline, merged, wall_offset


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Inter-token latencies that an engine reports by itself, of whichever requests: one emission per step."""

    engine: str
    model: str | None
    gaps: Mapping[float, int]
    """Seconds between two consecutive outputs of a request, and how many were that long."""


class Draft(NamedTuple):
    """A request that has ended; its timeline is made by whoever records it, beside the serving thread if he can."""

    context: object
    """What ``capture()`` returned in the caller's task."""
    make: Callable[[], Timeline | None]
    swallow: Callable[[str, Exception], None]

    def timeline(self) -> Timeline | None:
        """To be asked once. Never raises; None where there is none, or it cannot be made, which is counted."""
        try:
            return self.make()
        except Exception as error:
            self.swallow("timeline", error)
            return None


class Recording:
    """One request of one engine, from its arrival in the process to its end."""

    def __init__(
        self,
        emit: Callable[[Draft], None],
        *,
        engine: str,
        operation: str,
        model: str | None,
        request_id: str | None,
        context: object,
        swallow: Callable[[str, Exception], None] = faults.swallow,
    ) -> None:
        """``swallow`` is given the errors of what is read late, after the hook that closed the request."""
        self.received = time.monotonic_ns()
        self.open = True
        self._emit, self._swallow = emit, swallow
        self._fixed: dict[str, Any] = {
            "engine": engine,
            "operation": operation,
            "model": model,
            "request_id": request_id,
            "context": context,
            "wall_offset": wall_offset(),
        }

    def sample(self, *, ended: int, **marks: Any) -> Timeline:
        """One of several samples of this request, as a timeline of its own."""
        return Timeline(**self._fixed, ended=ended, **marks)

    def close(
        self, outcome: Outcome, error_type: str | None, late: Callable[[], Mapping[str, Any]] = dict, **marks: Any
    ) -> None:
        """
        End the request now, unless it has ended, and emit it.

        The marks are fields of ``Timeline``, and ``samples``, at whose stamps
        it is cut. ``late`` gives those that can be read at any time from now
        on: it runs once or never, in whichever thread records.
        """
        if not self.open:
            return
        self.open = False
        marks.setdefault("ended", time.monotonic_ns())
        self._emit(
            Draft(self._fixed["context"], partial(self._timeline, outcome, error_type, late, marks), self._swallow)
        )

    def _timeline(
        self, outcome: Outcome, error_type: str | None, late: Callable[[], Mapping[str, Any]], marks: dict[str, Any]
    ) -> Timeline:
        ending = {"received": self.received, "outcome": outcome, "error_type": error_type}
        found = {**late(), **marks}
        return Timeline(**{**self._fixed, **ending, **merged(found.pop("samples", ())), **found})
