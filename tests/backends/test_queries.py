"""Every query of every dashboard against a real database, and the front page against arithmetic."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import workload
from obtain import obtained
from programs import ROOT, Database, rotel, rotel_program
from queries import QUERIES, Query, expression, front_page, interpolate

from otel_llm import conventions
from otel_llm.client_timeline import CLIENT_PHASES
from otel_llm.timeline import PHASES, UNSPLIT

INSTANCES = 2
RUN_ID = "baseline"
NOWHERE = "http://127.0.0.1:1/v1/traces"
SECONDS = 6.0
REST = workload.REQUESTS[workload.FIRST :]
TICKS = workload.TICK / 1e9

# Panels that a healthy service leaves empty, by title.
EMPTY_IN_HEALTH = {"Errors of otel-llm itself"}


class Run(NamedTuple):
    """The workload, handled by several instances over a time range."""

    backend: Database
    start: float
    end: float
    database: str

    @property
    def precision(self) -> float:
        """Relative, of rates over the whole run: Prometheus extrapolates each series to the ends of the window."""
        return 0.02 if self.database == "prometheus" else 1e-9

    def whole(self, expr: str) -> float:
        """The one value of an expression whose rates cover the run as a whole."""
        window = math.ceil(self.end - self.start) + 1
        values = self.backend.select(interpolate(expr, f"{window}s"), at=self.end)
        assert len(values) == 1, f"{len(values)} series: {expr}"
        return next(iter(values.values()))


@pytest.fixture(scope="module", params=["victoria_metrics", "prometheus"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Rising load on two instances, through a collector, into each database."""
    database: Database = request.getfixturevalue(request.param)
    program = obtained(rotel_program)
    folder = tmp_path_factory.mktemp("rotel")
    with rotel(program, folder, metrics_to=database.otlp_metrics, traces_to=NOWHERE) as collector:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment.update(
            PYTHONPATH=str(ROOT),
            OTEL_SERVICE_NAME="workload",
            OTEL_RESOURCE_ATTRIBUTES=f"otel_llm.run.id={RUN_ID}",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc,
            OTEL_METRIC_EXPORT_INTERVAL="3600000",  # it exports by itself
        )
        start = time.time()
        command = [sys.executable, workload.__file__, str(SECONDS)]
        services = [
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(INSTANCES)
        ]
        for service in services:
            _, errors = service.communicate(timeout=60)
            assert service.returncode == 0, errors
        total = INSTANCES * len(workload.REQUESTS)
        database.wait_for(f"sum(gen_ai_server_request_duration_seconds_count) == {total}")
        yield Run(database, start, time.time(), request.param)


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: f"{q.dashboard}: {q.panel}: {q.legend}")
def test_every_query_returns_data(run: Run, query: Query) -> None:
    series = run.backend.select_range(interpolate(query.expr, "4s"), run.start, run.end, step=1.0)
    values = [value for points in series.values() for _, value in points if math.isfinite(value)]
    if query.panel in EMPTY_IN_HEALTH:
        assert not values
    else:
        assert values


def test_stack_of_phases_is_the_mean_of_the_requests(run: Run) -> None:
    mean = TICKS * sum(request.total for request in REST) / len(REST)
    measured = run.whole(front_page("Mean request time by phase", "measured end to end"))
    assert measured == pytest.approx(mean, rel=run.precision)
    for phase in (*PHASES, UNSPLIT):
        ticks = sum(part.ticks for request in REST for part in request.parts() if part.phase == phase)
        band = run.whole(front_page("Mean request time by phase", phase))
        assert band == pytest.approx(TICKS * ticks / len(REST), rel=run.precision), phase


def test_stack_of_client_parts_is_the_mean_of_the_attempts(run: Run) -> None:
    mean = TICKS * sum(request.client_total for request in REST) / len(REST)
    assert run.whole(expression("otel-llm-network", "Mean attempt by part", "measured by the client")) == pytest.approx(
        mean, rel=run.precision
    )
    for name in CLIENT_PHASES:
        ticks = sum(part.ticks for request in REST for part in request.client_parts() if part.phase == name)
        band = run.whole(expression("otel-llm-network", "Mean attempt by part", name))
        assert band == pytest.approx(TICKS * ticks / len(REST), rel=run.precision), name


def test_requests_in_flight_are_rate_times_mean_time(run: Run) -> None:
    rate = run.whole(front_page("Requests/s", "requests/s"))
    mean = TICKS * sum(request.total for request in REST) / len(REST)
    stack = sum(run.whole(front_page("Requests in flight by phase", phase)) for phase in (*PHASES, UNSPLIT))
    assert stack == pytest.approx(rate * mean, rel=run.precision)


def test_gauges_of_engines_add_up(run: Run) -> None:
    gauge = run.whole(front_page("Requests in flight by phase", "the engine's own count"))
    assert gauge == INSTANCES * (workload.RUNNING + workload.WAITING)
    assert run.whole(expression("otel-llm-queue", "KV cache in use", "KV cache")) == workload.KV_CACHE_USAGE


def test_steps_of_the_engine_are_exact(run: Run) -> None:
    steps = sum(request.output_tokens for request in REST)
    computed = sum(request.prompt_tokens - request.cached_tokens for request in REST)
    tokens = run.whole(expression("otel-llm-queue", "Tokens per step and requests per step", "tokens"))
    assert tokens == pytest.approx((computed + steps) / steps, rel=run.precision)
    assert run.whole(expression("otel-llm-queue", "Drafted tokens that were kept", "kept")) == pytest.approx(
        0.75, rel=run.precision
    )
    hits = run.whole(expression("otel-llm-caches", "Hit share: engine and requests", "engine"))
    assert hits == pytest.approx(run.whole(expression("otel-llm-caches", "Hit share", "hit share")), rel=run.precision)


@pytest.mark.parametrize(
    ("panel", "instrument", "ticks"),
    [
        ("End to end", "gen_ai.server.request.duration", [r.total for r in REST]),
        ("TTFT", "gen_ai.server.time_to_first_token", [r.first_token for r in REST if not r.failed]),
        ("TPOT", "gen_ai.server.time_per_output_token", [r.per_output_token for r in REST if not r.failed]),
    ],
)
@pytest.mark.parametrize(("legend", "quantile"), [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)])
def test_quantiles_are_in_the_bucket_of_the_true_ones(
    run: Run, panel: str, instrument: str, ticks: list[float], legend: str, quantile: float
) -> None:
    seconds = sorted(TICKS * length for length in ticks)
    true = seconds[math.ceil(quantile * len(seconds)) - 1]
    bounds = (0.0, *conventions.INSTRUMENTS[instrument].buckets)
    upper = bisect_left(bounds, true)
    estimate = run.whole(front_page(f"{panel}: quantiles", legend))
    assert bounds[upper - 1] <= estimate <= bounds[upper] * (1 + 1e-9)


def test_goodput_is_exact(run: Run) -> None:
    share = run.whole(expression("otel-llm-slo", "Good requests", "good"))
    assert share == pytest.approx(sum(request.good for request in REST) / len(REST), rel=run.precision)


def test_failures_and_targets_are_exact(run: Run) -> None:
    failed = sum(request.failed for request in REST)
    assert run.whole(front_page("Failed requests", "failed")) == pytest.approx(failed / len(REST), rel=run.precision)
    in_time = [TICKS * request.first_token <= 0.5 for request in REST if not request.failed]
    share = run.whole(front_page("TTFT within target", "within target"))
    assert share == pytest.approx(sum(in_time) / len(in_time), rel=run.precision)
    assert run.whole(front_page("Unaccounted time", "unaccounted")) == pytest.approx(0, abs=run.precision)


def test_the_largest_phase_is_named(run: Run) -> None:
    phases = (*PHASES, UNSPLIT)
    total = {
        phase: sum(part.ticks for request in REST for part in request.parts() if part.phase == phase)
        for phase in phases
    }
    largest = max(total, key=lambda phase: total[phase])
    window = math.ceil(run.end - run.start) + 1
    expr = interpolate(front_page("What takes most of the time now", "{{limit}}"), f"{window}s")
    [(labels, share)] = run.backend.select(expr, at=run.end).items()
    assert dict(labels)["otel_llm_phase"] == largest
    assert f"({largest})" in dict(labels)["limit"]
    assert share == pytest.approx(total[largest] / sum(total.values()), rel=run.precision)


def test_services_and_instances_have_their_labels(run: Run) -> None:
    """As the variables and legends of the dashboards expect them on either database."""
    series = run.backend.select(
        "count by (job, instance, service_name, service_instance_id, otel_llm_run_id) "
        "(gen_ai_server_request_duration_seconds_count)"
    )
    found = [dict(labels) for labels in series]
    service, instance = ("job", "instance") if run.database == "prometheus" else ("service_name", "service_instance_id")
    assert len({labels[instance] for labels in found}) == len(found) == INSTANCES
    for labels in found:
        assert labels == {service: "workload", instance: labels[instance], "otel_llm_run_id": RUN_ID}


def test_an_expression_without_data_would_be_noticed(run: Run) -> None:
    assert not run.backend.select_range("sum(rate(otel_llm_request_renamed_total[4s]))", run.start, run.end, 1.0)


def test_queries_hold_the_variables_they_should(run: Run) -> None:
    """A matcher that excludes the run leaves nothing, so the others did select it."""
    expr = front_page("Requests/s", "requests/s").replace("$model", "another")
    assert not run.backend.select(interpolate(expr, "60s"), at=run.end)


def test_a_load_test_is_chosen_by_its_run_id(run: Run) -> None:
    def values(side: str, **ids: str) -> list[float]:
        expr = interpolate(expression("otel-llm-load-test", "Requests per second", side), "4s", **ids)
        series = run.backend.select_range(expr, run.start, run.end, step=1.0).values()
        return [value for points in series for _, value in points]

    assert values("A", run=RUN_ID, other_run="another")
    assert not values("B", run=RUN_ID, other_run="another")
    assert values("B", run="another", other_run=RUN_ID, baseline="1ms")


def test_dashboards_are_found() -> None:
    names: set[Any] = {query.dashboard for query in QUERIES}
    assert "otel-llm-latency-throughput" in names
