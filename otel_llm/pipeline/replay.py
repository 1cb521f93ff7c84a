"""
Spans of the SDK made of descriptions: for exporters that take nothing else.

The SDK itself makes them, through its tracer: only the ids and the decision,
which have left the process already, are handed to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from otel_llm.pipeline.spans import Decided
from otel_llm.span_data import SpanData

_NOWHERE = Context()


class _Given(IdGenerator, Sampler):
    """Says again what was said before; below that, new ids."""

    def __init__(self, ids: IdGenerator) -> None:
        self._ids = ids
        self.root: SpanContext | None = None

    def generate_trace_id(self) -> int:
        assert self.root is not None
        return self.root.trace_id

    def generate_span_id(self) -> int:
        root, self.root = self.root, None
        return self._ids.generate_span_id() if root is None else root.span_id

    def is_trace_id_random(self) -> bool:
        return self.root is not None and bool(self.root.trace_flags & 0x02)

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
        span = self.root or get_current_span(parent_context).get_span_context()
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, span.trace_state)

    def get_description(self) -> str:
        return "given"


class Replay(SpanProcessor):
    """Makes spans, one request at a time, in one thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._given = given = _Given(provider.id_generator)
        self._provider = TracerProvider(given, provider.resource, shutdown_on_exit=False, id_generator=given)
        self._provider.add_span_processor(self)
        self._tracers: dict[str, Tracer] = {}
        self._ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it."""
        self._ended.append(span)

    def spans(self, decided: Decided) -> list[ReadableSpan]:
        """All spans of one request, in the order in which they end."""
        tracer = self._tracers.get(decided.scope)
        if tracer is None:
            tracer = self._tracers[decided.scope] = self._provider.get_tracer(decided.scope)
        self._ended = []
        self._given.root = decided.context
        parent = decided.parent
        context = _NOWHERE if parent is None else set_span_in_context(NonRecordingSpan(parent), _NOWHERE)
        data = decided.describe()
        if decided.added:
            data = data._replace(attributes={**data.attributes, **decided.added})
        self._make(tracer, data, context, decided.kind, decided.links)
        return self._ended

    def _make(self, tracer: Tracer, data: SpanData, context: Context, kind: SpanKind, links: Sequence[Link]) -> None:
        span = tracer.start_span(data.name, context, kind, data.attributes, links, data.start)
        inside = set_span_in_context(span, context)
        for child in data.children:
            self._make(tracer, child, inside, SpanKind.INTERNAL, ())
        if data.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(data.end)
