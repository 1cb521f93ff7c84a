"""The telemetry that versions 5.5 to 5.8 have of their own is silent beside ours, and speaks again afterwards."""

from __future__ import annotations

import pytest

from tests.engines import tiny_transformers as tiny
from tests.engines.test_transformers_batching import PROMPTS, generate_batch, model

metrics = pytest.importorskip("transformers.utils.metrics", reason="only from 4.57 to 5.8")
from opentelemetry import metrics as metrics_api  # noqa: E402  # only where the module above exists
from opentelemetry import trace  # noqa: E402  # likewise
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402  # likewise
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402  # likewise
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402  # likewise
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402  # likewise
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402  # likewise

assert model  # the fixture


def test_it_is_silent_while_ours_measures_the_same(model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(metrics_api._internal, "_METER_PROVIDER", MeterProvider([reader], shutdown_on_exit=False))

    def told() -> tuple[int, set[str]]:
        count = len(spans.get_finished_spans())
        spans.clear()
        data = reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return count, {metric.name for scope in scopes for metric in scope.metrics}

    before = vars(metrics)["get_tracer"]
    plain = generate_batch(model)
    count, names = told()
    assert count > len(PROMPTS)
    assert "ttft_milliseconds" in names
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics_api._internal, "_METER_PROVIDER", MeterProvider([reader], shutdown_on_exit=False))
    with tiny.watched() as seen:
        assert generate_batch(model) == plain
    assert told() == (0, set())
    assert len(seen) == len(PROMPTS)
    assert vars(metrics)["get_tracer"] is before
    generate_batch(model)
    assert told()[0] == count
