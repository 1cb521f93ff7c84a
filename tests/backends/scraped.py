"""
The workload of ``workload`` as a service that is scraped, with a meter provider of its own.

    scraped.py SECONDS PORT     handles ``FIRST`` requests, the others after a line of input, and stays until its end
"""

from __future__ import annotations

import sys
import time

import workload
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import start_http_server

import otel_llm

SCRAPE_SECONDS = 0.5

if __name__ == "__main__":
    seconds, port = float(sys.argv[1]), int(sys.argv[2])
    otel_llm.instrument(
        slo={"ttft": workload.TTFT_TARGET, "tpot": workload.TPOT_TARGET},
        tracer_provider=TracerProvider(),
        meter_provider=MeterProvider([PrometheusMetricReader()]),
    )
    for request in workload.REQUESTS[: workload.FIRST]:
        workload.call(request)
    start_http_server(port, addr="127.0.0.1")
    # All series have been scraped with these requests in them: later increases are those of the others.
    sys.stdin.readline()
    rest = workload.REQUESTS[workload.FIRST :]
    for request in rest:
        workload.call(request)
        time.sleep(seconds / len(rest))
    sys.stdin.read()
