"""From a point of a histogram to the trace of a request in it, across a collector."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import workload
from obtain import obtained
from programs import ROOT, rotel, rotel_program
from tape import Tape

HISTOGRAMS = {
    "gen_ai.server.request.duration",
    "gen_ai.server.time_to_first_token",
    "gen_ai.server.time_per_output_token",
    "otel_llm.request.phase.duration",
}
SPANS = sum(1 + len(request.parts()) for request in workload.REQUESTS)


def exemplars(tape: Tape) -> dict[str, set[tuple[str, str]]]:
    """Trace and span ids by metric."""
    found: dict[str, set[tuple[str, str]]] = {}
    for message in tape.messages():
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
        Tape() as backend,
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
        while (len(backend.spans()) < SPANS or not backend.metrics) and time.monotonic() < deadline:
            time.sleep(0.05)
    requests = {(span.trace_id, span.span_id) for span in backend.spans() if span.parent_id is None}
    assert len(requests) == len(workload.REQUESTS)
    found = exemplars(backend)
    assert found.keys() >= HISTOGRAMS
    for name in HISTOGRAMS:
        assert found[name], name
        assert found[name] <= requests, name
