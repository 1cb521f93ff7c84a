"""
Spans that are decided now and made later, in a thread of their own.

What the serving thread does for a request is to ask the sampler, draw the ids
and put a description into a bounded queue. Making spans of it, encoding and
sending them happens in the queue's thread. See docs/adr/0008.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_SCHEDULE_DELAY
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from otel_llm import faults
from otel_llm.pipeline.pace import Pace
from otel_llm.span_data import SpanData

BATCH = 56
"""Requests that wake the thread before its time. Small: a batch is work beside the serving thread."""

_BREATH = 8
"""Requests after which the thread lets others run; the interpreter alone would let them wait 5 ms."""

_LARGEST_SETTING = 999_999_999
"""As milliseconds 11 days; a thread that is to wait for 292 years raises."""

_RANDOM = 0x02
"""Trace flag of level 2 of W3C Trace Context: the trace id is random."""

_NOWHERE = Context()


class Decided(NamedTuple):
    """A span that will be made, with all that had to be known at once."""

    scope: str
    context: SpanContext
    parent: SpanContext | None
    kind: SpanKind
    links: Sequence[Link]
    added: Any
    """Attributes that the sampler adds, a mapping."""
    describe: Callable[[], SpanData]


class Outlet(Protocol):
    """Where spans go: an exporter, and what stands around it."""

    def deliver(self, batch: Sequence[Decided], breathe: Callable[[], None]) -> None:
        """Make spans and send them. Never raises."""
        ...

    def shutdown(self) -> None:
        """Close the connection."""
        ...


class SpanQueue:
    """Bounded. What comes when it is full is lost, and counted."""

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = outlets
        self._limit = setting(OTEL_BSP_MAX_QUEUE_SIZE, 2048)
        self._delay = setting(OTEL_BSP_SCHEDULE_DELAY, 5000) / 1000
        self._waiting: deque[Decided] = deque()
        self._taken = 0
        self._flushes: deque[threading.Event] = deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._pace = Pace()
        self.overflow = 0
        """Spans lost because the queue was full or closed."""
        self._thread = threading.Thread(target=self._run, name="otel-llm-spans", daemon=True)
        self._thread.start()

    def put(self, decided: Decided) -> None:
        """Queue it. Takes no lock, unless it is lost."""
        waiting = len(self._waiting)
        if waiting >= self._limit or self._closed:
            lost = size(decided.describe())
            with self._lock:
                self.overflow += lost
            if not self._closed:
                faults.warn("spans", "otel_llm: spans are being lost (the queue is full, %d so far)", self.overflow)
            return
        self._waiting.append(decided)
        if waiting + 1 >= BATCH and not self._wake.is_set():
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Requests that are not sent yet."""
        return len(self._waiting) + self._taken

    def flush(self, seconds: float | None) -> bool:
        """Send what is queued by now; False if that takes longer. None waits for it."""
        done = threading.Event()
        self._flushes.append(done)
        self._wake.set()
        return done.wait(seconds)

    def shutdown(self, seconds: float | None) -> None:
        """Send what is queued by now and close. None waits for it."""
        self._closed = True
        self._wake.set()
        self._thread.join(seconds)
        for outlet in self._outlets:
            outlet.shutdown()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._delay)
            self._wake.clear()
            closing = self._closed
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            while self._waiting:
                self._send()
            for done in flushes:
                done.set()
            if closing:
                return

    def _send(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
        self._taken = len(batch)
        for outlet in self._outlets:
            try:
                outlet.deliver(batch, self._breathe)
            except Exception as error:
                faults.swallow("pipeline.spans", error)
        self._taken = 0

    def _breathe(self) -> None:
        if not self._closed:
            self._pace.nap(hurry=len(self._waiting) > self._limit // 4)


class DeferredSpans:
    """Makes spans of one scope, later. ``telemetry.spans.SpanMaker``."""

    def __init__(self, scope: str, provider: TracerProvider, queue: SpanQueue) -> None:
        self._scope, self._queue = scope, queue
        self._sampler, self._ids = provider.sampler, provider.id_generator
        # Only newer versions of the SDK tell.
        self._random = _RANDOM if getattr(self._ids, "is_trace_id_random", bool)() else 0

    def begin(self, name: str, context: Context, kind: SpanKind, start: int) -> _Begun:
        """Give it its id, for headers; ``start`` is in its description too."""
        parent, trace_id, random = self._place(context)
        found = self._sampler.should_sample(context, trace_id, name, kind, None, ())
        sampled = found.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags((TraceFlags.SAMPLED if sampled else 0) | random)
        span = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, found.trace_state)
        decide = partial(Decided, self._scope, span, parent, kind, (), found.attributes) if sampled else None
        return _Begun(self._queue, span, decide)

    def make(
        self, name: str, context: Context, kind: SpanKind, links: Sequence[Link], describe: Callable[[], SpanData]
    ) -> Context:
        """Queue it, if it is sampled; if not, ``describe`` is never called. Return a context for exemplars."""
        parent, trace_id, random = self._place(context)
        found = self._sampler.should_sample(context, trace_id, name, kind, None, links)
        if found.decision is not Decision.RECORD_AND_SAMPLE:
            return _NOWHERE
        flags = TraceFlags(TraceFlags.SAMPLED | random)
        span = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, found.trace_state)
        self._queue.put(Decided(self._scope, span, parent, kind, links, found.attributes, describe))
        return set_span_in_context(NonRecordingSpan(span), _NOWHERE)

    def _place(self, context: Context) -> tuple[SpanContext | None, int, int]:
        """Parent, trace id and the flag of a random one, as the SDK's tracer finds them (``Tracer.start_span``)."""
        parent = get_current_span(context).get_span_context()
        if parent.is_valid:
            return parent, parent.trace_id, parent.trace_flags & _RANDOM
        return None, self._ids.generate_trace_id(), self._random


class _Begun:
    """A span whose headers have left and whose end is open. ``telemetry.spans.Begun``."""

    def __init__(
        self, queue: SpanQueue, span: SpanContext, decide: Callable[[Callable[[], SpanData]], Decided] | None
    ) -> None:
        self._queue, self._decide = queue, decide
        self.context = set_span_in_context(NonRecordingSpan(span), _NOWHERE)

    def finish(self, describe: Callable[[], SpanData]) -> None:
        if self._decide is not None:
            self._queue.put(self._decide(describe))


class DeferredSpanMakers:
    """
    What the pipeline has in the place of a tracer provider. ``telemetry.spans.SpanMakers``.

    Sampler, ids and resource are those of a provider of the SDK, which makes no spans itself.
    """

    def __init__(self, provider: TracerProvider, outlets: Sequence[Outlet]) -> None:
        self._provider = provider
        self.queue = SpanQueue(outlets)

    def maker(self, scope: str) -> DeferredSpans:
        """Make spans of this instrumentation scope."""
        return DeferredSpans(scope, self._provider, self.queue)

    def force_flush(self) -> None:
        """Send what is queued. Waits as long as that takes."""
        self.queue.flush(None)

    def shutdown(self) -> None:
        """Send what is queued and close. Waits as long as that takes."""
        self.queue.shutdown(None)


def size(data: SpanData) -> int:
    """Spans in a description."""
    return 1 + sum(size(child) for child in data.children)


def breathing(batch: Sequence[Decided], breathe: Callable[[], None]) -> Any:
    """Iterate over a batch, and let other threads run in between."""
    for number, decided in enumerate(batch):
        if number % _BREATH == _BREATH - 1:
            breathe()
        yield decided


def setting(name: str, default: int) -> int:
    """A positive whole number from the environment, at most ``_LARGEST_SETTING``."""
    found = os.environ.get(name, "").strip().lstrip("0")
    return min(int(found[:10]), _LARGEST_SETTING) or default if found.isdecimal() else default
