"""
A cap on the requests that are sampled per second, which no client can lift.

A sampler that follows its callers, as the standard ones do, samples whatever
they mark as sampled, and a ratio is beaten by choosing the trace id. The cap
goes around it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, get_current_span
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from otel_llm import faults


class CappedSampler(Sampler):
    """
    Lets at most ``per_second`` of what another sampler samples through, with a burst of one second.

    Counted are the spans that enter this process: those without a parent and
    those of a remote caller. What is below them shares their fate.
    """

    def __init__(self, inner: Sampler, per_second: float) -> None:
        self._inner, self._rate = inner, per_second
        self._burst = max(per_second, 1.0) if per_second else 0.0
        self._left, self._filled = self._burst, time.monotonic()
        self._lock = threading.Lock()
        self.capped = 0
        """Spans that the other sampler would have sampled."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Ask the other sampler, then the cap."""
        found = self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if found.decision is not Decision.RECORD_AND_SAMPLE:
            return found
        parent = get_current_span(parent_context).get_span_context()
        inside = parent.is_valid and not parent.is_remote
        allowed = parent.trace_flags.sampled if inside else self._take()
        return found if allowed else SamplingResult(Decision.DROP, None, found.trace_state)

    def get_description(self) -> str:
        """Name both."""
        return f"CappedSampler{{{self._inner.get_description()},{self._rate:g}/s}}"

    def _take(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._left = min(self._left + (now - self._filled) * self._rate, self._burst)
            self._filled = now
            if self._left >= 1.0:
                self._left -= 1.0
                return True
            self.capped += 1
        faults.warn("sampling", "otel_llm: more than %g sampled requests per second: the rest has no spans", self._rate)
        return False
