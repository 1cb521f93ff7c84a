"""
A request in flight: what is fixed at its start, and its single end.

Engines and decorators keep one of these per request and close it with the
stamps that they have seen; the result is a ``Timeline``, emitted once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otel_llm.timeline import Outcome, Timeline, merged, wall_offset


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Inter-token latencies that an engine reports by itself, of whichever requests: one emission per step."""

    engine: str
    model: str | None
    gaps: Mapping[float, int]
    """Seconds between two consecutive outputs of a request, and how many were that long."""


class Recording:
    """One request of one engine, from its arrival in the process to its end."""

    def __init__(
        self,
        emit: Callable[[Timeline], None],
        *,
        engine: str,
        operation: str,
        model: str | None,
        request_id: str | None,
        context: object,
    ) -> None:
        self.received = time.monotonic_ns()
        self.open = True
        self._emit = emit
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

    def close(self, outcome: Outcome, error_type: str | None, samples: Sequence[Timeline] = (), **marks: Any) -> None:
        """End the request now, unless it has ended: emit it, cut at the stamps of its samples."""
        if not self.open:
            return
        self.open = False
        marks = {**merged(samples), "received": self.received, "ended": time.monotonic_ns(), **marks}
        self._emit(Timeline(**{**self._fixed, "outcome": outcome, "error_type": error_type, **marks}))
