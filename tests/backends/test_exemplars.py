"""From a point of a histogram to the trace of a request in it, across a collector."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import workload
from obtain import obtained
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from programs import ROOT, rotel, rotel_program

from otel_llm.report.receiver import Receiver

HISTOGRAMS = {
    "gen_ai.server.request.duration",
    "gen_ai.server.time_to_first_token",
    "gen_ai.server.time_per_output_token",
    "otel_llm.request.phase.duration",
}
SPANS = sum(1 + len(request.parts()) for request in workload.REQUESTS)


class KeepsMetrics(Receiver):
    """Keeps the messages themselves too: exemplars are no part of its points."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[ExportMetricsServiceRequest] = []

    def take_metrics(self, body: bytes) -> None:
        self.messages.append(ExportMetricsServiceRequest.FromString(body))
        super().take_metrics(body)

    def exemplars(self) -> dict[str, set[tuple[str, str]]]:
        """Trace and span ids by metric."""
        found: dict[str, set[tuple[str, str]]] = {}
        for message in self.messages:
            for resource in message.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.histogram.data_points:
                            ids = {(e.trace_id.hex(), e.span_id.hex()) for e in point.exemplars}
                            found.setdefault(metric.name, set()).update(ids)
        return found


def test_exemplars_name_requests_that_have_arrived(tmp_path: Path) -> None:
    program = obtained(rotel_program)
    with (
        KeepsMetrics() as backend,
        rotel(
            program,
            tmp_path,
            metrics_to=f"{backend.url}/v1/metrics",
            traces_to=f"{backend.url}/v1/traces",
        ) as collector,
    ):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment.update(PYTHONPATH=str(ROOT), OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc)
        subprocess.run([sys.executable, workload.__file__], env=environment, check=True, timeout=60)
        deadline = time.monotonic() + 20
        while (len(backend.spans()) < SPANS or not backend.messages) and time.monotonic() < deadline:
            time.sleep(0.05)
    requests = {(span.trace_id, span.span_id) for span in backend.spans() if span.parent_id is None}
    assert len(requests) == len(workload.REQUESTS)
    exemplars = backend.exemplars()
    assert exemplars.keys() >= HISTOGRAMS
    for name in HISTOGRAMS:
        assert exemplars[name], name
        assert exemplars[name] <= requests, name
