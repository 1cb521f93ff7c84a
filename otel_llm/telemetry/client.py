"""An attempt of a client as a span, which the server's span goes below, and as histograms."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.trace import SpanKind

from otel_llm import edge, faults, sanitize
from otel_llm.client_timeline import ClientTimeline
from otel_llm.span_data import SpanData, Value
from otel_llm.telemetry import context as telemetry_context
from otel_llm.telemetry.instruments import bounded, histogram
from otel_llm.telemetry.spans import Begun, SpanMaker


class ClientWriter:
    """Writes one span and some histograms per attempt. Without a tracer or a meter, the other alone."""

    def __init__(self, spans: SpanMaker, meter: Meter | None, network: Histogram | None) -> None:
        self._spans = spans
        self._models: set[str] = set()
        self._providers: set[str] = set()
        """What servers call their engines is theirs to say."""
        self._metrics = None if meter is None or network is None else _Metrics(meter, network)

    def begin(self, operation: str, model: str | None, start: int) -> ClientSpan:
        """Begin the span at ``start``, nanoseconds since the Unix epoch."""
        context = otel_context.get_current()
        server = edge.current.get()
        if server is not None and not trace.get_current_span(context).get_span_context().is_valid:
            context = telemetry_context.extract(server.headers, context)
        return ClientSpan(self._spans.begin(_name(operation, model), context, SpanKind.CLIENT, start), self)

    def write(self, timeline: ClientTimeline, begun: Begun) -> None:
        """End the span, record the histograms."""
        phases = timeline.phases()
        begun.finish(lambda: _span(timeline, phases))
        if self._metrics is not None:
            names = {
                "gen_ai.request.model": bounded(timeline.model, self._models),
                "gen_ai.provider.name": bounded(timeline.provider, self._providers),
            }
            self._metrics.write(timeline, phases, names, begun.context)


class ClientSpan:
    """A span that has begun."""

    def __init__(self, begun: Begun, writer: ClientWriter) -> None:
        self._begun, self._writer = begun, writer
        self.headers: Mapping[str, str] = telemetry_context.inject(begun.context)

    def finish(self, timeline: ClientTimeline) -> None:
        """End it and record the attempt. Never raises."""
        try:
            self._writer.write(timeline, self._begun)
        except Exception as error:
            faults.swallow("client.finish", error)


class _Metrics:
    def __init__(self, meter: Meter, network: Histogram) -> None:
        self._duration = histogram(meter, "gen_ai.client.operation.duration")
        self._first_chunk = histogram(meter, "gen_ai.client.operation.time_to_first_chunk")
        self._phase = histogram(meter, "otel_llm.client.phase.duration")
        self._network = network

    def write(
        self, timeline: ClientTimeline, phases: Mapping[str, int], names: Mapping[str, str], context: Context
    ) -> None:
        labels = {**_labels(timeline), **names}
        ended = labels if timeline.error_type is None else {**labels, "error.type": sanitize.text(timeline.error_type)}
        self._duration.record(timeline.duration / 1e9, ended, context)
        for name, duration in phases.items():
            self._phase.record(max(duration, 0) / 1e9, {**labels, "otel_llm.phase": name}, context)
        first = timeline.time_to_first_chunk()
        if first is not None and timeline.outcome == "ok":
            self._first_chunk.record(first / 1e9, labels, context)
        method = timeline.method
        if method is not None:
            how = {**labels, "otel_llm.network.method": method}
            self._network.record(max(phases["network"], 0) / 1e9, how, context)


def _span(timeline: ClientTimeline, phases: Mapping[str, int]) -> SpanData:
    offset = timeline.wall_offset
    below: tuple[SpanData, ...] = ()
    if timeline.sent is not None and timeline.sent > timeline.started:  # the only part with a place of its own in time
        labels: dict[str, Value] = {**_labels(timeline), "otel_llm.phase": "connect"}
        below = (SpanData("connect", timeline.started + offset, timeline.sent + offset, labels),)
    return SpanData(
        _name(timeline.operation, timeline.model),
        timeline.started + offset,
        timeline.ended + offset,
        _attributes(timeline, phases),
        failed=timeline.outcome in ("error", "reject"),
        children=below,
    )


def _name(operation: str, model: str | None) -> str:
    return sanitize.text(operation if model is None else f"{operation} {model}")


def _labels(timeline: ClientTimeline) -> dict[str, str]:
    return {
        "gen_ai.operation.name": sanitize.text(timeline.operation),
        "gen_ai.provider.name": sanitize.text(timeline.provider),
    }


def _attributes(timeline: ClientTimeline, phases: Mapping[str, int]) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        **_labels(timeline),
        "otel_llm.outcome": timeline.outcome,
        "gen_ai.latency.e2e": timeline.duration / 1e9,
    }
    for key, text in (
        ("gen_ai.request.model", timeline.model),
        ("server.address", timeline.address),
        ("error.type", timeline.error_type),
    ):
        if text is not None:
            attributes[key] = sanitize.text(text)
    for key, number in (
        ("server.port", timeline.port),
        ("http.response.status_code", timeline.status),
        ("http.request.resend_count", timeline.resend or None),
    ):
        if number is not None:
            attributes[key] = number
    first = timeline.time_to_first_chunk()
    if first is not None:
        attributes["gen_ai.latency.time_to_first_token"] = first / 1e9
    attributes.update({f"otel_llm.client.{name}": duration / 1e9 for name, duration in phases.items()})
    method = timeline.method
    if method is not None:
        attributes["otel_llm.network.method"] = method
        attributes["otel_llm.network.duration"] = phases["network"] / 1e9
    return attributes
