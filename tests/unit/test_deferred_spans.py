"""What a pipeline of ours sends equals, byte for byte, what the SDK sends of the same requests; and its queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc  # type: ignore[import-untyped] # grpcio ships no types
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState

from otel_llm.client_timeline import ClientTimeline
from otel_llm.pipeline import otlp, spans
from otel_llm.pipeline.exporters import Loss, SpanOutlet
from otel_llm.pipeline.replay import Replay
from otel_llm.report.receiver import Receiver
from otel_llm.span_data import SpanData
from otel_llm.telemetry.recorder import Recorder
from tests.golden.test_golden import CASES, WALL, CountingIds, request
from tests.unit.test_conventions import ATTEMPTS

RESOURCE = Resource({"service.name": "s", "service.instance.id": "1"})
STATE = SpanContext(5, 6, True, TraceFlags(3), TraceState([("a", "b"), ("c", "d")]))
ODD = {
    "text": request(model="naïve \u4e2d", request_id="r" * 1000),
    "many tokens": request(prompt_tokens=2**62, output_tokens=300, preemptions=0),
    "below a state": request(context=trace.set_span_in_context(NonRecordingSpan(STATE), Context())),
    "flag and negative": request(attributes={"a": True, "b": False, "c": -5, "d": 0, "e": 0.0, "f": float("nan")}),
    "no such integer": request(attributes={"a": 1 << 63, "b": 1}),
    "before the epoch": request(wall_offset=-(10**18)),
}
REQUESTS = CASES | ODD


def traces(made: Sequence[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in made if span.context is not None}


class Sent(SpanExporter):
    """Keeps the spans, or the messages where it is given those."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.gate = threading.Event()
        self.gate.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait(30)
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


def provider(sampler: Sampler = ALWAYS_ON) -> TracerProvider:
    return TracerProvider(sampler, RESOURCE, shutdown_on_exit=False, id_generator=CountingIds())


def through_the_sdk(requests: Sequence[Any], public: bool = False) -> bytes:
    exporter, tracers = InMemorySpanExporter(), provider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = Recorder(tracers, None, public_endpoint=public)
    for one in requests:
        write(recorder, one)
    good = [span for span in exporter.get_finished_spans() if (span.start_time or 0) >= 0]
    return encode_spans(good).SerializeToString(deterministic=True)


def write(recorder: Recorder, one: Any) -> None:
    if isinstance(one, ClientTimeline):
        recorder.clients.begin(one.operation, one.model, one.started + one.wall_offset).finish(one)
    else:
        recorder.record(one)


def deferred(
    exporter: SpanExporter, requests: Sequence[Any], sampler: Sampler = ALWAYS_ON, public: bool = False
) -> Loss:
    tracers, loss = provider(sampler), Loss()
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])
    loss.queue = makers.queue
    recorder = Recorder(makers, None, public_endpoint=public)
    for one in requests:
        write(recorder, one)
        assert makers.queue.flush(30)  # one at a time: ids are drawn when a span is made
    makers.shutdown()
    return loss


def encoded(requests: Sequence[Any], monkeypatch: pytest.MonkeyPatch, public: bool = False) -> tuple[bytes, Loss]:
    """All messages as one. The first request shows the encoder what does not change."""
    bodies: list[bytes] = []

    def keep(body: bytes, _count: int) -> SpanExportResult:
        bodies.append(body)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(otlp, "sender", lambda _exporter: keep)
    loss = deferred(Sent(), requests, public=public)
    whole = ExportTraceServiceRequest()
    for body in bodies:
        message = ExportTraceServiceRequest.FromString(body)
        assert message.SerializeToString(deterministic=True) == body  # as the SDK's own encoder would have put it
        if not whole.resource_spans:
            whole.MergeFrom(message)
        else:
            whole.resource_spans[0].scope_spans[0].spans.extend(message.resource_spans[0].scope_spans[0].spans)
    return whole.SerializeToString(deterministic=True), loss


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_bytes_equal_those_of_the_sdk(name: str, public: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [REQUESTS["ok"], REQUESTS[name]]
    found, loss = encoded(requests, monkeypatch, public)
    assert found == through_the_sdk(requests, public)
    assert loss.spans.rejected == (6 if name == "before the epoch" else 0)


def test_the_encoder_of_our_own_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    original = Replay.spans

    def counted(self: Replay, decided: spans.Decided) -> list[ReadableSpan]:
        made.append(decided)
        return original(self, decided)

    monkeypatch.setattr(Replay, "spans", counted)
    encoded([*CASES.values(), ODD["text"], ODD["below a state"], ODD["many tokens"]], monkeypatch)
    assert len(made) == 1  # the very first request


def test_clients_attempts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [replace(attempt, wall_offset=WALL) for attempt in ATTEMPTS]
    found, _ = encoded(attempts, monkeypatch)
    assert found == through_the_sdk(attempts)


def test_any_other_exporter_is_given_spans_of_the_sdk() -> None:
    exporter, requests = Sent(), list(CASES.values())
    loss = deferred(exporter, requests)
    assert all(isinstance(span, ReadableSpan) for span in exporter.spans)
    assert encode_spans(exporter.spans).SerializeToString(deterministic=True) == through_the_sdk(requests)
    assert loss.exported()["spans"] == len(exporter.spans)


def test_limits_of_the_sdk_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    found, _ = encoded([CASES["ok"]] * 2, monkeypatch)
    assert found == through_the_sdk([CASES["ok"]] * 2)
    first = ExportTraceServiceRequest.FromString(found).resource_spans[0].scope_spans[0].spans[0]
    assert {a.value.string_value for a in first.attributes} == {"vll", "cha", "que", "pre", "dec", "pos"} & {
        a.value.string_value for a in first.attributes
    }


@pytest.mark.parametrize("exporter", [HttpExporter, GrpcExporter])
def test_the_installed_exporters_take_bytes(exporter: Callable[..., SpanExporter]) -> None:
    """A release of the SDK that takes this away costs time, not spans: see the next test."""
    assert otlp.sender(exporter(endpoint="http://127.0.0.1:1")) is not None


class Servicer(TraceServiceServicer):
    def __init__(self) -> None:
        self.spans = 0

    def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:  # noqa: N802 # gRPC's name
        self.spans += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        return ExportTraceServiceResponse()


@contextmanager
def collector(protocol: str) -> Iterator[tuple[SpanExporter, Callable[[], int]]]:
    if protocol == "http":
        with Receiver() as receiver:
            yield HttpExporter(endpoint=receiver.url + "/v1/traces"), lambda: len(receiver.spans())
        return
    servicer, server = Servicer(), grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call] # generated code
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield GrpcExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True), lambda: servicer.spans
    finally:
        server.stop(None)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("takes_bytes", [True, False])
def test_both_ways_arrive(protocol: str, takes_bytes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not takes_bytes:
        monkeypatch.setattr(otlp, "sender", lambda _exporter: None)
    with collector(protocol) as (exporter, arrived):
        loss = deferred(exporter, list(CASES.values()))
        assert arrived() == loss.exported()["spans"] > 50
        assert loss.dropped()["spans"] == 0


class Asked(Sampler):
    def __init__(self, inner: Sampler) -> None:
        self.inner, self.names, self.parents = inner, list[str](), list[object]()

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any) -> SamplingResult:
        self.names.append(name)
        self.parents.append(trace.get_current_span(parent_context).get_span_context())
        found = self.inner.should_sample(parent_context, trace_id, name, *rest, **more)
        return SamplingResult(found.decision, {"sampler": "asked"}, found.trace_state)

    def get_description(self) -> str:
        return "asked"


@pytest.mark.parametrize(("inner", "kept"), [(ALWAYS_OFF, False), (ALWAYS_ON, True)])
def test_the_sampler_is_asked_once_and_spares_the_work(inner: Sampler, kept: bool) -> None:
    sampler, exporter, described = Asked(inner), Sent(), []
    tracers, loss = provider(sampler), Loss()
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])

    def describe() -> SpanData:
        described.append("")
        return SpanData("name", 1, 2, {"a": 1}, children=[SpanData("below", 1, 2, {})])

    context = makers.maker("scope").make("name", Context(), SpanKind.INTERNAL, (), describe)
    makers.shutdown()
    span = trace.get_current_span(context).get_span_context()
    assert sampler.names == ["name"]
    assert bool(described) is kept
    assert span.trace_flags.sampled is kept
    assert [made.name for made in exporter.spans] == (["below", "name"] if kept else [])
    assert [dict(made.attributes or {}) for made in exporter.spans] == (
        [{}, {"a": 1, "sampler": "asked"}] if kept else []
    )
    assert traces(exporter.spans) == ({span.trace_id} if kept else set())


def test_a_parent_that_is_not_sampled_is_followed() -> None:
    off = SpanContext(5, 6, True, TraceFlags(0))
    one = request(context=trace.set_span_in_context(NonRecordingSpan(off), Context()))
    exporter = Sent()
    deferred(exporter, [one, CASES["ok"]], ParentBased(ALWAYS_ON))
    assert traces(exporter.spans) == {1}


def test_a_client_whose_span_is_not_sampled_says_so_in_its_headers() -> None:
    tracers = provider(ALWAYS_OFF)
    recorder = Recorder(spans.DeferredSpanMakers(tracers, []), None)
    header = recorder.clients.begin("chat", "m", 0).headers["traceparent"]
    assert header.endswith("-00")


def test_a_full_queue_loses_and_counts_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    exporter = Sent()
    exporter.gate.clear()  # a collector that does not answer
    tracers, loss = provider(), Loss()
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])
    loss.queue = makers.queue
    recorder = Recorder(makers, None)
    sent = 1000
    for _ in range(sent):
        recorder.record(CASES["ok"])
    assert makers.queue.waiting <= 100 + spans.BATCH
    assert not makers.queue.flush(0.05)
    exporter.gate.set()
    assert makers.queue.flush(30)
    makers.shutdown()
    each = 6  # the request and its phases
    assert loss.dropped()["spans"] >= each * (sent - 100 - 2 * spans.BATCH)
    assert len(exporter.spans) + loss.dropped()["spans"] == each * sent
    recorder.record(CASES["ok"])  # after the end
    assert len(exporter.spans) + loss.dropped()["spans"] == each * (sent + 1)


@pytest.mark.expects_faults
def test_a_description_that_fails_costs_its_batch_at_most(no_hidden_error: list[Any]) -> None:
    exporter, tracers, loss = Sent(), provider(), Loss()
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])
    maker = makers.maker("scope")

    def fails() -> SpanData:
        raise RuntimeError

    maker.make("bad", Context(), SpanKind.INTERNAL, (), fails)
    maker.make("good", Context(), SpanKind.INTERNAL, (), lambda: SpanData("good", 1, 2, {}))
    assert makers.queue.flush(30)
    makers.shutdown()
    assert [span.name for span in exporter.spans] == ["good"]
    assert [place for place, _ in no_hidden_error] == ["pipeline.describe"]
    assert loss.spans.rejected == 1


def test_a_full_batch_leaves_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    exporter, tracers, loss = Sent(), provider(), Loss()
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])
    recorder = Recorder(makers, None)
    for _ in range(spans.BATCH):
        recorder.record(CASES["ok"])
    deadline = time.monotonic() + 30
    while len(exporter.spans) < 6 * spans.BATCH and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(exporter.spans) == 6 * spans.BATCH
    makers.shutdown()


@pytest.mark.parametrize(
    ("value", "meant"),
    [("7", 7), (" 0999999999 ", 999_999_999), ("9" * 20, 999_999_999), ("9" * 5000, 999_999_999), ("0", 5), ("²", 5)],
)
def test_a_setting_that_no_wait_can_take(value: str, meant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail with any number: the thread that is to wait so long raises, and no span is ever sent."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", value)
    assert spans.setting("OTEL_BSP_SCHEDULE_DELAY", 5) == meant
    assert meant / 1000 < threading.TIMEOUT_MAX
