"""A request as spans, made after the fact with explicit times."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.util.types import AttributeValue

from otel_llm import sanitize
from otel_llm.timeline import Phase, Timeline

Attributes = dict[str, AttributeValue]

_LATENCY_KEYS = {
    "queue": "gen_ai.latency.time_in_queue",
    "prefill": "gen_ai.latency.time_in_model_prefill",
    "decode": "gen_ai.latency.time_in_model_decode",
}


class SpanWriter:
    """Writes one span per request, below it one per phase and one per sample."""

    def __init__(self, tracer: Tracer, *, public_endpoint: bool) -> None:
        self._tracer = tracer
        self._public_endpoint = public_endpoint

    def write(self, timeline: Timeline, phases: tuple[Phase, ...], context: Context) -> Context:
        """Return the context of the request's span, for exemplars."""
        parent = get_current_span(context).get_span_context()
        links: tuple[Link, ...] = ()
        if parent.is_remote and self._public_endpoint:
            context, links = Context(), (Link(parent),)
        kind = SpanKind.SERVER if parent.is_remote else SpanKind.INTERNAL
        return self._request(timeline, phases, context, kind, links)

    def _request(
        self, timeline: Timeline, phases: tuple[Phase, ...], context: Context, kind: SpanKind, links: tuple[Link, ...]
    ) -> Context:
        span = self._tracer.start_span(
            _name(timeline),
            context=context,
            kind=kind,
            attributes=request_attributes(timeline, phases),
            links=links,
            start_time=timeline.wall(timeline.start),
        )
        inside = set_span_in_context(span, context)
        if span.is_recording():
            for phase in phases:
                self._phase(timeline, phase, inside)
            for sample in timeline.children:
                self._request(sample, sample.phases(), inside, SpanKind.INTERNAL, ())
            _set_status(span, timeline)
        span.end(timeline.wall(timeline.ended))
        return inside

    def _phase(self, timeline: Timeline, phase: Phase, context: Context) -> None:
        attributes: Attributes = {
            "gen_ai.provider.name": sanitize.text(timeline.engine),
            "gen_ai.operation.name": sanitize.text(timeline.operation),
            "otel_llm.phase": phase.name,
        }
        if phase.between:
            attributes["otel_llm.phase.between"] = phase.between
        start = timeline.wall(phase.start)
        span = self._tracer.start_span(phase.name, context=context, attributes=attributes, start_time=start)
        span.end(timeline.wall(phase.end))


def _name(timeline: Timeline) -> str:
    operation = sanitize.text(timeline.operation)
    return operation if timeline.model is None else f"{operation} {sanitize.text(timeline.model)}"


def _set_status(span: Span, timeline: Timeline) -> None:
    # A request that its caller gave up is no failure of the service.
    if timeline.outcome in ("error", "reject"):
        span.set_status(Status(StatusCode.ERROR))


def request_attributes(timeline: Timeline, phases: tuple[Phase, ...]) -> Attributes:
    """All of ``conventions.REQUEST_SPAN`` that is known; no prompt, no completion, no message of an error."""
    attributes: Attributes = {
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
