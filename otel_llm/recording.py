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
from typing import Any

from otel_llm import faults
from otel_llm.timeline import Outcome, Timeline, merged, wall_offset


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Inter-token latencies that an engine reports by itself, of whichever requests: one emission per step."""

    engine: str
    model: str | None
    gaps: Mapping[float, int]
    """Seconds between two consecutive outputs of a request, and how many were that long."""


class Draft:
    """A request that has ended; its timeline is made by whoever records it, beside the serving thread if he can."""

    context: object = None
    """What ``capture()`` returned in the caller's task."""
    make: Callable[[], Timeline | None]
    """Make it, once; None where there is nothing to tell."""
    swallow: Callable[[str, Exception], None]

    def timeline(self) -> Timeline | None:
        """To be asked once. Never raises; None where there is none, or it cannot be made, which is counted."""
        try:
            return self.make()
        except Exception as error:
            self.swallow("timeline", error)
            return None


class Recording(Draft):
    """One request of one engine, from its arrival in the process to its end; from then on its own draft."""

    engine: str
    operation: str
    model: str | None = None
    request_id: str | None = None
    open = True
    _outcome: Outcome
    _error_type: str | None
    _marks: dict[str, Any]
    _wall_offset: int | None = None
    """One for the request and its samples."""

    def __init__(
        self,
        emit: Callable[[Draft], None],
        context: object,
        swallow: Callable[[str, Exception], None] = faults.swallow,
    ) -> None:
        """
        ``engine``, ``operation`` and what is known of the rest are set by whoever makes it, as late as in ``late``.

        ``swallow`` is given the errors of what is read late, after the hook that closed the request.
        """
        self.received = time.monotonic_ns()
        self.context, self.swallow, self._emit = context, swallow, emit

    def sample(self, *, ended: int, **marks: Any) -> Timeline:
        """One of several samples of this request, as a timeline of its own."""
        return Timeline(**self._fixed(), ended=ended, **marks)

    def close(self, outcome: Outcome, error_type: str | None, **marks: Any) -> None:
        """
        End the request now, unless it has ended, and emit it.

        The marks are fields of ``Timeline``, and ``samples``, at whose stamps it is cut.
        """
        if not self.open:
            return
        self.open = False
        if "ended" not in marks:
            marks["ended"] = time.monotonic_ns()
        self._outcome, self._error_type, self._marks = outcome, error_type, marks
        self._emit(self)

    def late(self) -> Mapping[str, Any]:
        """More marks, which can be read at any time from the end on: once or never, in whichever thread records."""
        return {}

    def make(self) -> Timeline:
        """See ``Draft``."""
        found = {**self.late(), **self._marks}  # first: the rest may become known by it
        fields = self._fixed()
        fields |= {"received": self.received, "outcome": self._outcome, "error_type": self._error_type}
        if samples := found.pop("samples", ()):
            fields |= merged(samples)
        fields |= found
        return Timeline(**fields)

    def _fixed(self) -> dict[str, Any]:
        if self._wall_offset is None:
            self._wall_offset = wall_offset()
        return {
            "engine": self.engine,
            "operation": self.operation,
            "model": self.model,
            "request_id": self.request_id,
            "context": self.context,
            "wall_offset": self._wall_offset,
        }
