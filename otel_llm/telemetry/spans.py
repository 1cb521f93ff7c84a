"""A request as spans, made after the fact with explicit times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

from otel_llm import conventions, sanitize
from otel_llm.span_data import SpanData, Value
from otel_llm.timeline import Phase, Timeline

_LATENCY_KEYS = {
    "queue": "gen_ai.latency.time_in_queue",
    "prefill": "gen_ai.latency.time_in_model_prefill",
    "decode": "gen_ai.latency.time_in_model_decode",
}

Describe = Callable[[], SpanData]
"""Says what a span says. Asked for when it is needed: where a pipeline defers that, in its own thread."""


class Begun(Protocol):
    """A span that has its id and its place, and has not ended."""

    @property
    def context(self) -> Context:
        """Holds the span: for what goes below it, for headers and exemplars."""
        ...

    def finish(self, describe: Describe) -> None:
        """End it."""
        ...


class SpanMaker(Protocol):
    """Makes spans of descriptions: through any tracer, or deferred by a pipeline of our own."""

    def begin(self, name: str, context: Context, kind: SpanKind, start: int) -> Begun:
        """Begin a span below the one in the context; ``start`` is nanoseconds since the Unix epoch."""
        ...

    def make(self, name: str, context: Context, kind: SpanKind, links: Sequence[Link], describe: Describe) -> Context:
        """Make a span that has ended, and those below it. Return a context with it, for exemplars."""
        ...


class SpanMakers(Protocol):
    """What a pipeline of our own has in the place of a provider."""

    def maker(self, scope: str) -> SpanMaker:
        """Make spans of this instrumentation scope."""
        ...


def maker(source: TracerProvider | SpanMakers | None) -> SpanMaker:
    """Make spans through a provider of the application's, or of our own pipeline, or none at all."""
    if source is None:
        return TracerSpans(NoOpTracer())
    if isinstance(source, TracerProvider):
        return TracerSpans(source.get_tracer(conventions.SCOPE))
    return source.maker(conventions.SCOPE)


class TracerSpans:
    """Spans through a tracer, at once: what an application has set up (samplers, processors) sees them all."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, name: str, context: Context, kind: SpanKind, start: int) -> Begun:
        """With the id that its headers carry."""
        span = self._tracer.start_span(name, context, kind, start_time=start)
        return _BegunSpan(self, span, set_span_in_context(span, context))

    def make(self, name: str, context: Context, kind: SpanKind, links: Sequence[Link], describe: Describe) -> Context:
        """``name`` stands in the description too."""
        return self._write(describe(), context, kind, links)

    def _write(self, data: SpanData, context: Context, kind: SpanKind, links: Sequence[Link] = ()) -> Context:
        span = self._tracer.start_span(data.name, context, kind, data.attributes, links, data.start)
        inside = set_span_in_context(span, context)
        self.end(span, data, inside)
        return inside

    def end(self, span: Span, data: SpanData, context: Context) -> None:
        """End it, after what goes below it."""
        if span.is_recording():
            for child in data.children:
                self._write(child, context, SpanKind.INTERNAL)
            if data.failed:
                span.set_status(Status(StatusCode.ERROR))
        span.end(data.end)


class _BegunSpan:
    def __init__(self, spans: TracerSpans, span: Span, context: Context) -> None:
        self._spans, self._span, self.context = spans, span, context

    def finish(self, describe: Describe) -> None:
        data = describe()
        if self._span.is_recording():
            self._span.update_name(data.name)  # it may have become known later
            self._span.set_attributes(data.attributes)
        self._spans.end(self._span, data, self.context)


class SpanWriter:
    """Writes one span per request, below it one per phase and one per sample."""

    def __init__(self, spans: SpanMaker, *, public_endpoint: bool) -> None:
        self._spans = spans
        self._public_endpoint = public_endpoint

    def write(self, timeline: Timeline, phases: tuple[Phase, ...], context: Context) -> Context:
        """Return the context of the request's span, for exemplars."""
        parent = get_current_span(context).get_span_context()
        links: tuple[Link, ...] = ()
        if parent.is_remote and self._public_endpoint:
            context, links = Context(), (Link(parent),)
        kind = SpanKind.SERVER if parent.is_remote else SpanKind.INTERNAL
        return self._spans.make(_name(timeline), context, kind, links, lambda: request_span(timeline, phases))


def request_span(timeline: Timeline, phases: tuple[Phase, ...]) -> SpanData:
    """The span of a request or of one of its samples."""
    return SpanData(
        _name(timeline),
        timeline.wall(timeline.start),
        timeline.wall(timeline.ended),
        _request_attributes(timeline, phases),
        failed=timeline.outcome in ("error", "reject"),  # one that its caller gave up is no failure of the service
        children=_below(timeline, phases),
    )


def _below(timeline: Timeline, phases: tuple[Phase, ...]) -> Iterator[SpanData]:
    engine, operation, offset = sanitize.text(timeline.engine), sanitize.text(timeline.operation), timeline.wall_offset
    for name, start, end, between in phases:
        yield SpanData(name, start + offset, end + offset, _phase_attributes(engine, operation, name, between))
    for sample in timeline.children:
        yield request_span(sample, sample.phases())


@lru_cache(maxsize=256)
def _phase_attributes(engine: str, operation: str, name: str, between: tuple[str, ...]) -> Mapping[str, Value]:
    attributes: dict[str, Value] = {
        "gen_ai.provider.name": engine,
        "gen_ai.operation.name": operation,
        "otel_llm.phase": name,
    }
    if between:
        attributes["otel_llm.phase.between"] = between
    return MappingProxyType(attributes)  # an encoder may keep what it makes of it


def _name(timeline: Timeline) -> str:
    operation, model = timeline.operation, timeline.model
    plain = type(operation) is str and type(model) is str  # anything else may do anything when it is hashed
    return _usual_name(operation, model) if plain else _clean_name(operation, model)


def _clean_name(operation: str, model: str | None) -> str:
    operation = sanitize.text(operation)
    return operation if model is None else f"{operation} {sanitize.text(model)}"


_usual_name = lru_cache(maxsize=256)(_clean_name)


def _request_attributes(timeline: Timeline, phases: tuple[Phase, ...]) -> dict[str, Value]:
    """All of ``conventions.REQUEST_SPAN`` that is known; no prompt, no completion, no message of an error."""
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": sanitize.text(timeline.operation),
        "gen_ai.provider.name": sanitize.text(timeline.engine),
        "otel_llm.outcome": timeline.outcome,
        "gen_ai.latency.e2e": timeline.duration / 1e9,
    }
    for key, value in (
        ("gen_ai.request.model", timeline.model),
        ("gen_ai.request.id", timeline.request_id),
        ("error.type", timeline.error_type),
    ):
        if value is not None:
            attributes[key] = sanitize.text(value)
    for key, number in (
        ("gen_ai.usage.input_tokens", timeline.prompt_tokens),
        ("gen_ai.usage.cache_read.input_tokens", timeline.cached_tokens),
        ("gen_ai.usage.output_tokens", timeline.output_tokens),
        ("otel_llm.preemptions", timeline.preemptions),
        ("gen_ai.request.choice.count", len(timeline.children) or None),
    ):
        counted = sanitize.count(number)
        if counted is not None:
            attributes[key] = counted
    if timeline.finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = tuple(sanitize.text(r) for r in timeline.finish_reasons)
    if timeline.preemptions:
        attributes["otel_llm.preemption.stall"] = timeline.preemption_stall / 1e9
    first = timeline.time_to_first_token()
    if first is not None and timeline.output_tokens:
        attributes["gen_ai.latency.time_to_first_token"] = first / 1e9
    inference = 0
    for phase in phases:
        if key := _LATENCY_KEYS.get(phase.name, ""):
            attributes[key] = phase.duration / 1e9
            inference += phase.duration if phase.name != "queue" else 0
    if inference:
        attributes["gen_ai.latency.time_in_model_inference"] = inference / 1e9
    for key, extra in timeline.attributes.items():
        attributes[key] = sanitize.text(extra) if isinstance(extra, str) else extra
    return attributes
