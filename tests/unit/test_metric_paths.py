"""
Whatever the application or the exporter wants of metrics, it gets what plain ``record`` and ``add`` would give.

The measurements themselves are taken down by a meter of the test's own and
recorded again, plainly; bulk instruments are compared in test_bulk.py.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import Counter as SdkCounter
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from otel_llm import conventions
from otel_llm.config import Targets
from otel_llm.pipeline import spans
from otel_llm.pipeline.bulk import BulkMeterProvider
from otel_llm.pipeline.exporters import Loss, SpanOutlet
from otel_llm.pipeline.providers import Pipeline
from otel_llm.telemetry.recorder import Recorder
from tests.golden.test_golden import CASES

TARGETS = Targets(ttft=0.05, tpot=0.05)
Taken = list[tuple[str, float, dict[str, Any]]]


class _Histogram(api.NoOpHistogram):
    taken: Callable[[float, Any], None]

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.taken(amount, attributes)


class _Counter(api.NoOpCounter):
    taken: Callable[[float, Any], None]

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.taken(amount, attributes)


class TakesDown(api.NoOpMeter):
    def __init__(self) -> None:
        super().__init__("m")
        self.all: Taken = []

    def create_histogram(self, name: str, *_: Any, **__: Any) -> api.Histogram:
        made = _Histogram(name)
        made.taken = lambda amount, attributes: self.all.append((name, amount, dict(attributes)))
        return made

    def create_counter(self, name: str, *_: Any, **__: Any) -> api.Counter:
        made = _Counter(name)
        made.taken = lambda amount, attributes: self.all.append((name, amount, dict(attributes)))
        return made


class Provider(api.NoOpMeterProvider):
    def __init__(self) -> None:
        self.meter = TakesDown()

    def get_meter(self, *_: Any, **__: Any) -> api.Meter:
        return self.meter


def measurements() -> Taken:
    provider = Provider()
    recorder = Recorder(None, provider, targets=TARGETS)
    for one in CASES.values():
        recorder.record(one)
    assert len(provider.meter.all) > 8 * len(CASES) / 2
    return provider.meter.all


def plainly(provider: MeterProvider) -> None:
    meter = provider.get_meter(conventions.SCOPE)
    instruments: dict[str, Any] = {}
    for row in conventions.INSTRUMENTS.values():
        if row.kind == "histogram":
            bounds = {"explicit_bucket_boundaries_advisory": row.buckets}
            instruments[row.name] = meter.create_histogram(row.name, row.unit, row.description, **bounds).record  # type: ignore[arg-type]
        elif row.kind == "counter":
            instruments[row.name] = meter.create_counter(row.name, row.unit, row.description).add
    for name, value, attributes in measurements():
        instruments[name](value, attributes)


def ours(provider: Any) -> None:
    recorder = Recorder(None, provider, targets=TARGETS)
    for one in CASES.values():
        recorder.record(one)


DELTA = dict.fromkeys((Histogram, SdkCounter), AggregationTemporality.DELTA)
PHASES = "otel_llm.request.phase.duration"
COARSE = ExplicitBucketHistogramAggregation((0.01, 0.1))
KINDS: dict[str, tuple[dict[str, Any], list[View]]] = {
    "as they are": ({}, []),
    "delta": ({"preferred_temporality": DELTA}, []),
    "exponential": ({"preferred_aggregation": {Histogram: ExponentialBucketHistogramAggregation()}}, []),
    "views": (
        {},
        [
            View(
                instrument_name=PHASES,
                attribute_keys={"otel_llm.phase"},
                aggregation=ExplicitBucketHistogramAggregation((0.01, 0.1)),
            ),
            View(instrument_name="otel_llm.request.tokens", name="tokens", attribute_keys=set()),
            View(instrument_name="gen_ai.server.time_to_first_token", aggregation=DropAggregation()),
        ],
    ),
}


def points(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        if metric.name.startswith("otel_llm.telemetry."):
            continue
        fields = json.loads(metric.to_json())
        for point in fields["data"]["data_points"]:
            for name in ("start_time_unix_nano", "time_unix_nano", "exemplars"):
                point.pop(name, None)
        fields["data"]["data_points"].sort(key=json.dumps)
        found[metric.name] = fields
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_applications_provider_is_given_every_measurement(kind: str) -> None:
    preferences, views = KINDS[kind]
    found = []
    for record in (plainly, ours):
        reader = InMemoryMetricReader(**preferences)
        provider = MeterProvider([reader], Resource({}), views=views)
        record(provider)
        first = points(reader)
        record(provider)
        found.append((first, points(reader)))
    assert found[0] == found[1]
    assert len(found[0][0]) >= 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


LINE = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)")


def test_what_prometheus_scrapes_from_our_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.prometheus")
    port = free_port()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    pipeline = Pipeline("svc", frozenset({"metrics"}))
    assert pipeline.bulk is None
    ours(pipeline.meter_provider)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [found for line in answer.read().decode().splitlines() if (found := LINE.fullmatch(line))]
    pipeline.shutdown()

    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for name, value, _ in measurements():
        counts[name.replace(".", "_")] += 1
        sums[name.replace(".", "_")] += value  # type: ignore[assignment] # seconds
    scraped: Counter[str] = Counter()
    for line in lines:
        scraped[line["name"]] += float(line["value"])  # type: ignore[assignment] # seconds
    for name in ("gen_ai_server_request_duration", "otel_llm_request_phase_duration"):
        assert scraped[f"{name}_seconds_count"] == counts[name]
        assert scraped[f"{name}_seconds_sum"] == pytest.approx(sums[name])
    assert scraped["otel_llm_request_tokens_total"] == sums["otel_llm_request_tokens"]
    phases = {re.search(r'otel_llm_phase="(\w+)"', line["labels"])[1] for line in lines if "phase_dur" in line["name"]}  # type: ignore[index]
    assert phases == {attributes["otel_llm.phase"] for name, _, attributes in measurements() if name == PHASES}


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(("sampler", "kept"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
def test_exemplars_name_the_request_that_is_sampled(bulk: bool, deferred: bool, sampler: Sampler, kept: bool) -> None:
    exporter, reader, loss = InMemorySpanExporter(), InMemoryMetricReader(), Loss()
    tracers = TracerProvider(sampler, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    makers = spans.DeferredSpanMakers(tracers, [SpanOutlet(exporter, tracers, loss.spans)])
    meters = MeterProvider([reader])
    ours_in_bulk = BulkMeterProvider(meters)
    recorder = Recorder(makers if deferred else tracers, ours_in_bulk if bulk else meters, loss=loss)
    recorder.record(CASES["ok"])
    makers.shutdown()
    data = reader.get_metrics_data()
    assert data is not None
    if bulk:
        data = ours_in_bulk.complete(data)
    roots: list[ReadableSpan] = [s for s in exporter.get_finished_spans() if s.name == "chat tiny"]
    expected = {(s.context.trace_id, s.context.span_id) for s in roots if s.context is not None}
    exemplars = {
        (exemplar.trace_id, exemplar.span_id)
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        for exemplar in point.exemplars
    }
    assert exemplars == expected
    assert bool(expected) is kept
