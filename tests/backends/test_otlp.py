"""What a service records arrives in a real database and behind a real collector, digit by digit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import pytest
import workload
from programs import ROOT, Collector, Database

from otel_llm import conventions, timeline
from otel_llm.report.otlp import Span
from otel_llm.report.receiver import Receiver

TICKS = workload.TICK / 1e9
PHASES = sorted({part.phase for request in workload.REQUESTS for part in request.parts()})
SPANS = sum(1 + len(request.parts()) for request in workload.REQUESTS)
ENDED = [request for request in workload.REQUESTS if not request.failed]
REQUEST_LABELS = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "vllm",
    "gen_ai_request_model": workload.MODEL,
}


class Sent(NamedTuple):
    """A service that has handled its requests and left."""

    service: str
    """Name of the service and of its only instance."""
    backend: Database
    traces: Receiver

    def spans(self) -> list[Span]:
        return [span for span in self.traces.spans() if span.process == self.service]

    def wait(self, seconds: float = 20.0) -> None:
        """Until everything has gone through the collector, which batches each signal on its own."""
        deadline = time.monotonic() + seconds
        while len(self.spans()) < SPANS and time.monotonic() < deadline:
            time.sleep(0.05)
        self.backend.wait_for(f'otel_llm_request_tokens_total{{service_name="{self.service}"}}', seconds)

    def metric(self, name: str, *keep: str) -> dict[str | tuple[str, ...], float]:
        """Value by the labels to keep, of the one series that each has."""
        found: dict[str | tuple[str, ...], float] = {}
        for labels, value in self.backend.select(f'{name}{{service_name="{self.service}"}}').items():
            of_series = dict(labels)
            key = tuple(of_series.get(label, "") for label in keep)
            assert key not in found, f"two series of {name} for {key}"
            found[key[0] if len(key) == 1 else key] = value
        return found


@pytest.fixture(
    scope="module",
    params=[(collector, protocol) for collector in ("rotel", "otelcol") for protocol in ("grpc", "http/protobuf")],
    ids="-".join,
)
def sent(request: pytest.FixtureRequest, victoria_metrics: Database, traces: Receiver) -> Sent:
    """Run the workload as a service of its own that exports to this collector by this protocol."""
    name, protocol = request.param
    collector: Collector = request.getfixturevalue(name)
    service = f"workload-{uuid.uuid4().hex[:8]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment.update(
        PYTHONPATH=str(ROOT),
        OTEL_SERVICE_NAME=service,
        OTEL_RESOURCE_ATTRIBUTES=f"service.instance.id={service}",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc if protocol == "grpc" else collector.http,
    )
    done = subprocess.run(
        [sys.executable, workload.__file__], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a healthy export says nothing"
    arriving = Sent(service, victoria_metrics, traces)
    arriving.wait()
    return arriving


@pytest.mark.parametrize(
    ("instrument", "ticks"),
    [
        ("gen_ai.server.time_to_first_token", [request.first_token for request in ENDED]),
        ("gen_ai.server.time_per_output_token", [request.per_output_token for request in ENDED]),
    ],
)
def test_histograms_arrive_exactly(sent: Sent, instrument: str, ticks: list[float]) -> None:
    seconds = [TICKS * length for length in ticks]
    name = instrument.replace(".", "_") + "_seconds"
    assert sent.metric(f"{name}_count") == {(): len(seconds)}
    assert sent.metric(f"{name}_sum") == {(): sum(seconds)}
    assert sent.metric(f"{name}_bucket", "le") == cumulative(seconds, conventions.INSTRUMENTS[instrument].buckets)
    for labels in sent.backend.select(f'{name}_count{{service_name="{sent.service}"}}'):
        assert dict(labels).items() >= REQUEST_LABELS.items()


@pytest.mark.parametrize(("failed", "error_type"), [(False, ""), (True, "EngineDeadError")])
def test_durations_arrive_exactly(sent: Sent, failed: bool, error_type: str) -> None:
    seconds = [TICKS * request.total for request in workload.REQUESTS if request.failed == failed]
    name = "gen_ai_server_request_duration_seconds"
    assert sent.metric(f"{name}_count", "error_type")[error_type] == len(seconds)
    assert sent.metric(f"{name}_sum", "error_type")[error_type] == sum(seconds)
    buckets = sent.metric(f"{name}_bucket", "error_type", "le")
    expected = cumulative(seconds, conventions.INSTRUMENTS["gen_ai.server.request.duration"].buckets)
    assert {key[1]: value for key, value in buckets.items() if key[0] == error_type} == expected


@pytest.mark.parametrize("phase", PHASES)
def test_phases_arrive_exactly(sent: Sent, phase: str) -> None:
    # Upload and stall are both network: one value per request.
    ticks = [sum(part.ticks for part in r.parts() if part.phase == phase) for r in workload.REQUESTS]
    seconds = [TICKS * length for length in ticks if length]
    name = "otel_llm_request_phase_duration_seconds"
    assert sent.metric(f"{name}_count", "otel_llm_phase")[phase] == len(seconds)
    assert sent.metric(f"{name}_sum", "otel_llm_phase")[phase] == sum(seconds)
    buckets = sent.metric(f"{name}_bucket", "otel_llm_phase", "le")
    expected = cumulative(seconds, conventions.INSTRUMENTS["otel_llm.request.phase.duration"].buckets)
    assert {key[1]: value for key, value in buckets.items() if key[0] == phase} == expected


def test_sums_of_phases_add_up_to_the_sum_of_durations(sent: Sent) -> None:
    phases = sent.metric("otel_llm_request_phase_duration_seconds_sum", "otel_llm_phase")
    durations = sent.metric("gen_ai_server_request_duration_seconds_sum", "error_type")
    assert set(phases) == set(PHASES) == {*timeline.PHASES, timeline.UNSPLIT}
    assert sum(phases.values()) == sum(durations.values())


def test_counters_arrive_exactly(sent: Sent) -> None:
    assert sent.metric("otel_llm_request_tokens_total", "gen_ai_token_type") == {
        "input": sum(request.prompt_tokens for request in workload.REQUESTS),
        "cached_input": sum(request.cached_tokens for request in workload.REQUESTS),
        "output": sum(request.output_tokens for request in workload.REQUESTS),
    }


def test_goodput_arrives_exactly(sent: Sent) -> None:
    counted = sent.backend.select(
        f'sum by (otel_llm_slo_met) (otel_llm_request_slo_total{{service_name="{sent.service}"}})'
    )
    good = sum(request.good for request in workload.REQUESTS)
    assert {dict(labels)["otel_llm_slo_met"]: value for labels, value in counted.items()} == {
        "true": good,
        "false": len(workload.REQUESTS) - good,
    }


def test_traces_arrive_whole(sent: Sent) -> None:
    spans = sent.spans()
    assert len(spans) == SPANS
    roots = [span for span in spans if span.parent_id is None]
    assert len({root.trace_id for root in roots}) == len(workload.REQUESTS)
    arrived = []
    for root in roots:
        phases = sorted((span for span in spans if span.parent_id == root.span_id), key=lambda span: span.start)
        assert {phase.trace_id for phase in phases} == {root.trace_id}
        edges = [root.start, *(phase.end for phase in phases)]
        assert [phase.start for phase in phases] == edges[:-1]
        assert edges[-1] == root.end
        assert root.name == f"chat {workload.MODEL}"
        arrived.append(tuple(workload.Part(p.name, (p.end - p.start) // workload.TICK) for p in phases))
    assert Counter(arrived) == Counter(tuple(request.parts()) for request in workload.REQUESTS)


def cumulative(values: Iterable[float], bounds: tuple[float, ...]) -> dict[str, float]:
    """Count of values up to each bound, by the text of the bound."""
    inside = Counter(bisect_left(bounds, value) for value in values)
    labels = [*(repr(bound) for bound in bounds), "+Inf"]
    return dict(zip(labels, accumulate(inside[index] for index in range(len(labels))), strict=True))
