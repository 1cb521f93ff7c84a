"""
Timeline in, telemetry out, to the last attribute: files in this folder.

Ids count up and all times come from the timeline, so that a difference is a
change. ``pytest --update-golden`` rewrites the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_llm.config import Targets
from otel_llm.telemetry.recorder import Recorder
from otel_llm.timeline import Timeline, merged

FOLDER = Path(__file__).parent
MS = 1_000_000
WALL = 1_700_000_000_000_000_000


class CountingIds(IdGenerator):
    def __init__(self) -> None:
        self.spans = self.traces = 0

    def generate_span_id(self) -> int:
        self.spans += 1
        return self.spans

    def generate_trace_id(self) -> int:
        self.traces += 1
        return self.traces


REMOTE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))


def remote_context() -> Context:
    return trace.set_span_in_context(NonRecordingSpan(REMOTE), Context())


def request(**fields: Any) -> Timeline:
    marks: dict[str, Any] = {"received": 0, "submitted": 2 * MS, "scheduled": 12 * MS, "first_token": 60 * MS}
    marks |= {"last_token": 460 * MS, "ended": 463 * MS}
    about: dict[str, Any] = {"engine": "vllm", "operation": "chat", "model": "tiny", "wall_offset": WALL}
    counts = {"prompt_tokens": 32, "cached_tokens": 16, "output_tokens": 21, "preemptions": 0}
    return Timeline(**{**marks, **about, **counts, "finish_reasons": ("length",), "request_id": "r-1", **fields})


SAMPLES = [
    request(received=None, output_tokens=3, ended=300 * MS, last_token=299 * MS, finish_reasons=("stop",)),
    request(received=None, output_tokens=5, scheduled=14 * MS),
]
CASES = {
    "ok": request(attributes={"otel_llm.engine.queue_time": 0.001}),
    "server_edge": request(
        arrived=-20 * MS,
        parsed=-15 * MS,
        received=-10 * MS,
        ended=480 * MS,
        stall=5 * MS,
        context=remote_context(),
        attributes={
            "otel_llm.network.duration": 0.022,
            "otel_llm.network.method": "server_tcp",
            "otel_llm.network.peer_limited": 0.004,
        },
    ),
    "abort_in_decode": request(
        outcome="abort", error_type="cancelled", last_token=None, output_tokens=4, finish_reasons=("abort",)
    ),
    "abort_unsplit": request(
        outcome="abort",
        error_type="abort",
        scheduled=None,
        first_token=None,
        last_token=None,
        output_tokens=0,
        cut_known=False,
    ),
    "reject": Timeline(
        engine="vllm",
        operation="chat",
        model="tiny",
        received=0,
        ended=MS,
        outcome="reject",
        error_type="VLLMValidationError",
        wall_offset=WALL,
    ),
    "assisted": request(
        engine="transformers",
        scheduled=0,
        submitted=None,
        attributes={
            "otel_llm.engine.draft_time": 0.2,
            "otel_llm.device.wait.prefill": 0.03,
            "otel_llm.device.wait.decode": 0.4,
        },
    ),
    "told_by_the_core": request(
        attributes={
            "otel_llm.engine.queue_time": 0.009,
            "otel_llm.engine.grammar_wait": 0.004,
            "otel_llm.engine.kv_transfer_wait": 0.003,
            "otel_llm.engine.input_wait": 0.1,
            "otel_llm.engine.draft_tokens": 12,
            "otel_llm.engine.accepted_tokens": 7,
            "otel_llm.engine.clock": "anchored",
            "gen_ai.request.max_tokens": 21,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.9,
        }
    ),
    "no_tokens": request(operation="embeddings", last_token=60 * MS, ended=61 * MS, output_tokens=0, finish_reasons=()),
    "preempted": request(preemptions=2, preemption_stall=80 * MS),
    "samples": request(**merged(SAMPLES)),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def telemetry(timeline: Timeline) -> dict[str, Any]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider = TracerProvider(resource=Resource({}), id_generator=CountingIds())
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    meter_provider = MeterProvider([reader], Resource({}))
    Recorder(tracer_provider, meter_provider, targets=Targets(ttft=0.05, tpot=0.05)).record(timeline)
    spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    for span in spans:
        del span["resource"]
    metrics = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
    found = metrics["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    return {"spans": spans, "metrics": _timeless(found)}


def _timeless(value: Any) -> Any:
    """Without the collection's own times; of the buckets only those that hold something."""
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        dropped = ("exemplars", "time_unix_nano", "start_time_unix_nano")  # which one is kept is a matter of chance
        kept = {key: _timeless(item) for key, item in value.items() if key not in dropped}
        if "bucket_counts" in kept:
            bounds = [*kept.pop("explicit_bounds"), "inf"]
            kept["bucket_counts"] = {str(b): n for b, n in zip(bounds, kept["bucket_counts"], strict=True) if n}
        return kept
    return value


def test_golden(case: str, pytestconfig: pytest.Config) -> None:
    file = FOLDER / f"{case}.json"
    found = telemetry(CASES[case])
    if pytestconfig.getoption("--update-golden"):
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(file.read_text())
