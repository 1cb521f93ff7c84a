"""Emitted == declared, and what is declared keeps to its rules."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from otel_llm import conventions, faults
from otel_llm.client_timeline import ClientTimeline
from otel_llm.config import Targets
from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.pairing import ServerTiming
from otel_llm.pipeline.bulk import BulkMeterProvider
from otel_llm.pipeline.exporters import Loss
from otel_llm.recording import TokenGaps
from otel_llm.telemetry.recorder import Recorder
from tests.golden.test_golden import CASES

ATTEMPTS = (
    ClientTimeline(
        operation="chat",
        provider="vllm",
        model="m",
        address="localhost",
        port=8000,
        status=200,
        started=0,
        sent=1_000_000,
        answered=2_000_000,
        first_token=5_000_000,
        ended=20_000_000,
        backlog=1_000_000,
        resend=1,
        wall_offset=0,
        server=ServerTiming(
            dict.fromkeys(("accept", "network", "preprocess", "queue", "prefill", "decode", "postprocess"), 1_000_000),
            "vllm",
            first_body=6_000_000,
            peer_stall=500_000,
        ),
    ),
    ClientTimeline(
        operation="chat", provider="openai", started=0, ended=1, outcome="error", error_type="500", wall_offset=0
    ),
)

TYPES = {str: "string", int: "int", float: "double", bool: "boolean", tuple: "string[]"}


def test_every_attribute_in_a_table_is_described() -> None:
    used = {*conventions.REQUEST_SPAN, *conventions.PHASE_SPAN, *conventions.CLIENT_SPAN}
    for instrument in conventions.INSTRUMENTS.values():
        used |= set(instrument.attributes)
    assert used == set(conventions.ATTRIBUTES)


def test_no_bucket_bound_is_an_integer_and_all_rise() -> None:
    for instrument in conventions.INSTRUMENTS.values():
        assert list(instrument.buckets) == sorted(set(instrument.buckets))
        assert not [bound for bound in instrument.buckets if bound == int(bound)]
        assert bool(instrument.buckets) == (instrument.kind == "histogram")


def test_emitted_equals_declared() -> None:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider, meter_provider = TracerProvider(), BulkMeterProvider(MeterProvider([reader]))
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = Recorder(tracer_provider, meter_provider, targets=Targets(ttft=0.05), loss=Loss())
    for timeline in CASES.values():
        recorder.record(timeline)
    for attempt in ATTEMPTS:
        span = recorder.clients.begin(attempt.operation, attempt.model, attempt.started)
        span.finish(attempt)
    faults.errors["test"] += 1
    recorder.record(TokenGaps("vllm", "tiny", {0.02: 3}))
    told = dict.fromkeys(EngineState._fields, 1)
    recorder.record(EngineState(**{**told, "engine": "vllm", "model": "tiny", "shared": None}))  # type: ignore[arg-type]
    recorder.record(EngineStep("vllm", "tiny", 1, requests=3, tokens=22, prefill_tokens=20, duration=0.01))
    inner = reader.get_metrics_data()
    assert inner is not None
    found = meter_provider.complete(inner)
    del faults.errors["test"]

    seen: dict[str, set[str]] = {"request": set(), "phase": set(), "client": set()}
    for span in exporter.get_finished_spans():
        of = "phase" if "otel_llm.phase" in (span.attributes or {}) else "request"
        for key, value in (span.attributes or {}).items():
            assert TYPES[type(value)] == conventions.ATTRIBUTES[key].type, key
            seen["client" if span.kind is SpanKind.CLIENT else of].add(key)
    assert seen["request"] == set(conventions.REQUEST_SPAN)
    assert seen["phase"] == set(conventions.PHASE_SPAN)
    assert seen["client"] == set(conventions.CLIENT_SPAN)

    (scope,) = found.resource_metrics[0].scope_metrics
    assert scope.scope.name == conventions.SCOPE
    assert {metric.name for metric in scope.metrics} == set(conventions.INSTRUMENTS)
    for metric in scope.metrics:
        row = conventions.INSTRUMENTS[metric.name]
        keys = {key for point in metric.data.data_points for key in (point.attributes or {})}
        assert (metric.unit, metric.description) == (row.unit, row.description)
        assert keys == set(row.attributes), metric.name
        for key in keys:
            values = conventions.ATTRIBUTES[key].values
            found_values = {point.attributes[key] for point in metric.data.data_points if key in point.attributes}  # type: ignore[index,operator,union-attr]
            assert not values or found_values <= set(values)
