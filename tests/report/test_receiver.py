from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from otel_llm.report.receiver import Receiver

RESOURCE = Resource.create({"service.name": "test", "service.instance.id": "one"})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_spans_arrive_as_they_were_sent(receiver: Receiver, compression: Compression) -> None:
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    attributes = {"a": "text", "b": 2, "c": 0.5, "d": True, "e": ("x", "y")}
    parent = tracer.start_span("parent", start_time=1_000_000_000_000_000_001, attributes=attributes)
    child = tracer.start_span("child", context=set_span_in_context(parent), start_time=1_000_000_000_000_000_002)
    child.end(1_000_000_000_000_000_003)
    parent.set_status(Status(StatusCode.ERROR))
    parent.end(1_000_000_000_000_000_009)
    provider.shutdown()

    first, second = receiver.spans()
    assert (first.name, first.start, first.end) == ("child", 1_000_000_000_000_000_002, 1_000_000_000_000_000_003)
    assert (second.name, second.start, second.end) == ("parent", 1_000_000_000_000_000_001, 1_000_000_000_000_000_009)
    assert (second.attributes, second.failed, second.process) == (attributes, True, "one")
    assert (first.attributes, first.failed, first.process) == ({}, False, "one")
    identity = parent.get_span_context()
    assert second.trace_id == first.trace_id == f"{identity.trace_id:032x}"
    assert second.span_id == first.parent_id == f"{identity.span_id:016x}"
    assert second.parent_id is None
    assert receiver.spans(since=1) == [second]


def test_the_newest_value_of_every_series_is_kept(receiver: Receiver) -> None:
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{receiver.url}/v1/metrics"), float("inf"))
    meter = MeterProvider([reader], RESOURCE, shutdown_on_exit=False).get_meter("test")
    times = meter.create_histogram("times", "s")
    counter = meter.create_counter("tokens")
    counter.add(5, {"kind": "in"})
    times.record(0.25)
    reader.force_flush()
    counter.add(7, {"kind": "in"})
    counter.add(1, {"kind": "out"})
    times.record(0.5)
    reader.force_flush()
    reader.shutdown()

    (histogram,) = receiver.points("times")
    assert (histogram.unit, histogram.total, histogram.count, histogram.process) == ("s", 0.75, 2, "one")
    counted = {point.attributes["kind"]: (point.total, point.count) for point in receiver.points("tokens")}
    assert counted == {"in": (12.0, None), "out": (1.0, None)}
    assert receiver.points("unknown") == []


@pytest.mark.parametrize(
    ("path", "body", "content_type", "encoding", "status"),
    [
        ("/v1/traces", b"\xff not protobuf", "application/x-protobuf", "identity", 400),
        ("/v1/metrics", b"not gzip", "application/x-protobuf", "gzip", 400),
        ("/v1/traces", b"", "application/x-protobuf", "br", 400),
        ("/v1/traces", b"{}", "application/json", "identity", 415),
        ("/v1/logs", b"", "application/x-protobuf", "identity", 404),
    ],
)
def test_what_cannot_be_read_is_refused(
    receiver: Receiver, path: str, body: bytes, content_type: str, encoding: str, status: int
) -> None:
    headers = {"Content-Type": content_type, "Content-Encoding": encoding}
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(receiver.url + path, body, headers), timeout=10)
    assert refusal.value.code == status
    assert receiver.refused == (1 if status == 400 else 0)
    good = urllib.request.Request(f"{receiver.url}/v1/traces", b"", {"Content-Type": "application/x-protobuf"})
    with urllib.request.urlopen(good, timeout=10) as answer:
        assert answer.status == 200
    assert receiver.spans() == []
