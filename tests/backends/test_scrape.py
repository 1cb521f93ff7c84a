"""A service that is scraped, into a Prometheus that stores its histograms as explicit and as native ones."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import scraped
import workload
from obtain import obtained
from programs import ROOT, Database, free_port, installed_program, scraping_prometheus
from queries import QUERIES, front_page, interpolate

from otel_llm import conventions
from otel_llm.dashboards import native_histograms
from otel_llm.timeline import PHASES, UNSPLIT

SECONDS = 5.0
REST = workload.REQUESTS[workload.FIRST :]
TICKS = workload.TICK / 1e9
REQUESTS = "gen_ai_server_request_duration_seconds"

EMPTY = {
    "Errors of otel-llm itself": "there are none",
    "ITL: quantiles": "own pipeline only",
    "ITL: distribution": "own pipeline only",
    "Exported and lost": "own pipeline only",
}


class Scraped(NamedTuple):
    database: Database
    start: float
    end: float

    def whole(self, expr: str) -> float:
        """The one value of an expression whose rates cover the run as a whole."""
        window = math.ceil(self.end - self.start)
        values = self.database.select(interpolate(expr, f"{window}s"), at=self.end)
        assert len(values) == 1, f"{len(values)} series: {expr}"
        return next(iter(values.values()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    program = obtained(partial(installed_program, "prometheus"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"PYTHONPATH": str(ROOT), "OTEL_SERVICE_NAME": "workload"}
    command = [sys.executable, scraped.__file__, str(SECONDS), str(port)]
    start = time.time()
    with (
        scraping_prometheus(
            program, tmp_path_factory.mktemp("prometheus"), port, seconds=scraped.SCRAPE_SECONDS
        ) as database,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service,
    ):
        assert service.stdin is not None
        database.wait_for(f"sum({REQUESTS}_count) == {workload.FIRST}", seconds=60)
        service.stdin.write("\n")
        service.stdin.flush()
        database.wait_for(f"sum({REQUESTS}_count) == {len(workload.REQUESTS)}", seconds=60)
        yield Scraped(database, start, time.time())
        _, errors = service.communicate(timeout=60)
        assert errors == ""


FORMS: dict[str, Callable[[str], str]] = {"explicit": str, "native": native_histograms}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dashboard", sorted({query.dashboard for query in QUERIES}))
def test_rule_16_every_query_returns_data(run: Scraped, dashboard: str, form: str) -> None:
    """16. By scrape too, and where Prometheus stores native histograms."""
    of_dashboard = [query for query in QUERIES if query.dashboard == dashboard]
    empty = set()
    for query in of_dashboard:
        expr = interpolate(FORMS[form](query.expr), "3s")
        series = run.database.select_range(expr, run.start, run.end, step=1.0)
        if not any(math.isfinite(value) for points in series.values() for _, value in points):
            empty.add(query.panel)
    assert empty == {query.panel for query in of_dashboard} & EMPTY.keys()


@pytest.mark.parametrize("form", FORMS)
def test_front_page_is_arithmetic(run: Scraped, form: str) -> None:
    def shown(panel: str, legend: str) -> float:
        return run.whole(FORMS[form](front_page(panel, legend)))

    mean = TICKS * sum(request.total for request in REST) / len(REST)
    assert shown("Mean request time by phase", "measured end to end") == pytest.approx(mean, rel=0.02)
    stack = sum(shown("Mean request time by phase", phase) for phase in (*PHASES, UNSPLIT))
    assert stack == pytest.approx(mean, rel=0.02)
    in_time = [TICKS * request.first_token <= 0.5 for request in REST if not request.failed]
    assert shown("TTFT within target", "within target") == pytest.approx(sum(in_time) / len(in_time), rel=0.02)
    seconds = sorted(TICKS * request.total for request in REST)
    bounds = (0.0, *conventions.INSTRUMENTS["gen_ai.server.request.duration"].buckets)
    for legend, quantile in (("p50", 0.5), ("p95", 0.95)):
        upper = bisect_left(bounds, seconds[math.ceil(quantile * len(seconds)) - 1])
        estimate = shown("End to end: quantiles", legend)
        assert bounds[upper - 1] <= estimate <= bounds[upper] * (1 + 1e-9)


def test_both_forms_of_histograms_are_stored(run: Scraped) -> None:
    """Or the two halves of these tests would be one."""
    assert run.database.select(f"histogram_count(sum({REQUESTS}))", at=run.end)
    assert run.database.select(f"sum({REQUESTS}_count)", at=run.end)
    for query in QUERIES:
        assert native_histograms(native_histograms(query.expr)) == native_histograms(query.expr)
