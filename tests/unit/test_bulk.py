"""What bulk instruments send equals what the SDK's ``record`` and ``add`` send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricExporter, MetricsData
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.config import Targets
from otel_llm.pipeline import bulk
from otel_llm.pipeline.exporters import CountingMetricExporter, Loss
from otel_llm.recording import TokenGaps
from otel_llm.telemetry.recorder import Recorder
from tests.golden.test_golden import CASES


class Kept(MetricExporter):
    """Keeps what it is given."""

    def __init__(self, **preferences: Any) -> None:
        super().__init__(**preferences)
        self.data: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> Any:
        self.data.append(metrics_data)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Holds nothing."""

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


def points(data: MetricsData) -> dict[tuple[str, str], Any]:
    """Every point without its times and exemplars, by instrument and attributes."""
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    found = {}
    for metric in scope.metrics:
        about = (metric.unit, metric.description, type(metric.data).__name__)
        for point in metric.data.data_points:
            fields = json.loads(point.to_json())
            for key in ("start_time_unix_nano", "time_unix_nano", "exemplars"):
                fields.pop(key, None)
            found[(metric.name, json.dumps(fields.pop("attributes"), sort_keys=True))] = (about, fields)
    return found


def test_points_equal_those_of_the_sdk() -> None:
    reader, tracers = InMemoryMetricReader(), TracerProvider()
    stock = MeterProvider([reader], Resource({}))
    other_reader = InMemoryMetricReader()
    ours = bulk.BulkMeterProvider(MeterProvider([other_reader], Resource({})))
    for provider in (stock, ours):
        recorder = Recorder(tracers, provider, targets=Targets(ttft=0.05, tpot=0.05), loss=Loss())
        for timeline in (*CASES.values(), *CASES.values()):
            recorder.record(timeline)
    expected, inner = reader.get_metrics_data(), other_reader.get_metrics_data()
    assert expected is not None
    assert inner is not None
    assert points(ours.complete(inner)) == points(expected)


def test_exemplars_link_to_the_requests_span_and_leave_once() -> None:
    reader, tracers = InMemoryMetricReader(), TracerProvider()
    ours = bulk.BulkMeterProvider(MeterProvider([reader], Resource({})))
    Recorder(tracers, ours, loss=Loss()).record(CASES["ok"])

    def exemplars() -> list[Any]:
        inner = reader.get_metrics_data()
        assert inner is not None
        (scope,) = ours.complete(inner).resource_metrics[0].scope_metrics
        (metric,) = [metric for metric in scope.metrics if metric.name == "gen_ai.server.request.duration"]
        return list(metric.data.data_points[0].exemplars)

    (exemplar,) = exemplars()
    assert exemplar.value == 0.463
    assert exemplar.trace_id
    assert exemplar.span_id
    assert exemplars() == []


def test_series_are_capped_and_what_comes_later_overflows() -> None:
    meter = bulk.BulkMeterProvider(MeterProvider([InMemoryMetricReader()])).get_meter("m")
    counter = meter.create_counter("c")
    for number in range(bulk.SERIES_LIMIT + 50):
        counter.add(1, {"n": number})
    metric = counter.collect(0)  # type: ignore[attr-defined]
    overflow = [point for point in metric.data.data_points if "otel.metric.overflow" in point.attributes]
    assert len(metric.data.data_points) == bulk.SERIES_LIMIT + 1
    assert overflow[0].value == 50


@pytest.mark.parametrize(
    ("preferences", "taken"),
    [
        ({}, True),
        ({"preferred_temporality": {Counter: AggregationTemporality.CUMULATIVE}}, True),
        ({"preferred_temporality": {Histogram: AggregationTemporality.DELTA}}, False),
        ({"preferred_aggregation": {Histogram: ExponentialBucketHistogramAggregation()}}, False),
    ],
)
def test_other_preferences_are_left_to_the_sdk(preferences: dict[str, Any], taken: bool) -> None:
    exporter = CountingMetricExporter(Kept(**preferences), Loss().metrics)
    assert bulk.takes_bulk(exporter) is taken


def test_inter_token_latencies_are_added_up_and_never_recorded_one_by_one() -> None:
    def count(provider: Any, complete: Any, reader: InMemoryMetricReader) -> int:
        recorder = Recorder(None, provider, loss=Loss())
        recorder.record(TokenGaps("vllm", "tiny", {0.011: 5, 0.021: 2, float("nan"): 1, -1.0: 1}))
        data = reader.get_metrics_data()
        assert data is not None
        found = {key[0]: fields for key, (_, fields) in points(complete(data)).items()}
        latency = found.get("otel_llm.request.inter_token_latency", {"count": 0, "sum": 0})
        assert latency["sum"] == pytest.approx(latency["count"] and 5 * 0.011 + 2 * 0.021)
        number: int = latency["count"]
        return number

    reader, foreign = InMemoryMetricReader(), InMemoryMetricReader()
    ours = bulk.BulkMeterProvider(MeterProvider([reader]))
    assert count(ours, ours.complete, reader) == 7
    assert count(MeterProvider([foreign]), lambda data: data, foreign) == 0
