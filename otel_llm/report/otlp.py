"""OTLP messages as plain data: spans, and the latest value of every metric series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, HistogramDataPoint, Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Status

Value = str | bool | int | float | bytes | tuple["Value", ...] | None
Attributes = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Span:
    """A span; ids in hex, times in nanoseconds since the Unix epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start: int
    end: int
    attributes: Attributes
    failed: bool
    process: str
    """``service.instance.id`` of its resource, empty if it has none."""


@dataclass(frozen=True, slots=True)
class Point:
    """One data point of a metric series."""

    name: str
    unit: str
    attributes: Attributes
    process: str
    """``service.instance.id`` of its resource, empty if it has none."""
    time: int
    """Nanoseconds since the Unix epoch."""
    total: float
    """The value of a counter or gauge, the sum of a histogram."""
    count: int | None
    """The number of measurements in a histogram; None for counters and gauges."""


def spans(body: bytes) -> Iterator[Span]:
    """
    Decode an ``ExportTraceServiceRequest``.

    Raises ``google.protobuf.message.DecodeError`` if it is none.
    """
    message = ExportTraceServiceRequest.FromString(body)
    for group in message.resource_spans:
        process = _process(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    name=span.name,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    failed=span.status.code == Status.STATUS_CODE_ERROR,
                    process=process,
                )


def points(body: bytes) -> Iterator[Point]:
    """
    Decode an ``ExportMetricsServiceRequest``.

    Raises ``google.protobuf.message.DecodeError`` if it is none.
    """
    message = ExportMetricsServiceRequest.FromString(body)
    for group in message.resource_metrics:
        process = _process(group.resource.attributes)
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                yield from _points(metric, process)


def _points(metric: Metric, process: str) -> Iterator[Point]:
    for number in (*metric.sum.data_points, *metric.gauge.data_points):
        value = float(number.as_int if number.WhichOneof("value") == "as_int" else number.as_double)
        labels = _attributes(number.attributes)
        yield Point(metric.name, metric.unit, labels, process, number.time_unix_nano, value, None)
    histograms: Iterable[HistogramDataPoint | ExponentialHistogramDataPoint] = chain(
        metric.histogram.data_points, metric.exponential_histogram.data_points
    )
    for histogram in histograms:
        labels = _attributes(histogram.attributes)
        moment = histogram.time_unix_nano
        yield Point(metric.name, metric.unit, labels, process, moment, histogram.sum, histogram.count)


def _process(resource: Iterable[KeyValue]) -> str:
    return str(_attributes(resource).get("service.instance.id", ""))


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return tuple((pair.key, _value(pair.value)) for pair in value.kvlist_value.values)
    plain: Value = getattr(value, kind)
    return plain
