"""
One run of real vLLM and real transformers: every panel in every backend, and the front page against the timelines.

What is exported is kept, and played to each backend afterwards.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest
from live_run import SEQUENCES, TPOT_TARGET, TTFT_TARGET, WINDOW_SECONDS, Kept, LiveRun, record
from obtain import obtained
from programs import Database, installed_engine, installed_program, otelcol, rotel, rotel_program, victoria_metrics
from queries import QUERIES, expression, front_page, interpolate

from otel_llm import conventions
from otel_llm.timeline import PHASES, UNSPLIT

pytestmark = [pytest.mark.vllm, pytest.mark.transformers]

ENGINES = ("vllm", "transformers")
WINDOW = f"{WINDOW_SECONDS:g}s"
REQUESTS = "gen_ai.server.request.duration"
NOWHERE = "http://127.0.0.1:1/v1/traces"

FRONT_PAGE = "otel-llm-latency-throughput"
NETWORK = "otel-llm-network"

# What this run may leave empty, by panel or by series, and why. A busy machine puts something into some of them.
EMPTY_PANELS = {
    "Errors of otel-llm itself": "there are none",
    "Drafted tokens that were kept": "the run does not speculate",
}
EMPTY_SERIES = {
    ("server", "network"): "on loopback no upload takes a moment and no reader holds an answer up",
    ("server", UNSPLIT): "no stamp is missing",
    (NETWORK, "consumer"): "the clients read at once",
    (NETWORK, UNSPLIT): "the server tells every client its times",
}
# Of the front page, where only transformers is chosen.
NO_SERVER = {"accept": "it runs in a script", "preprocess": "it runs in a script"}
NOT_OF_TRANSFORMERS = dict.fromkeys(("ITL: quantiles", "ITL: distribution"), "vLLM alone tells its token gaps")


class Played(NamedTuple):
    """The run, in a backend."""

    run: LiveRun
    database: Database

    def empty(self, dashboard: str, engine: str) -> set[tuple[str, str]]:
        """Queries of a dashboard without a value anywhere in the run, by panel and legend."""
        found = set()
        for query in QUERIES:
            if query.dashboard == dashboard:
                expr = interpolate(query.expr, WINDOW, engine=engine)
                series = self.database.select_range(expr, self.run.began, self.run.end, step=1.0)
                if not any(math.isfinite(value) for points in series.values() for _, value in points):
                    found.add((query.panel, query.legend))
        return found

    def total(self, expr: str, engine: str) -> float:
        """The one value of a query over all that the processes counted, from nothing to their ends."""
        counted = re.sub(r"rate\((\w+\{[^}]*\})\[[^]]*\]\)", r"last_over_time(\1[10m])", expr)
        values = self.database.select(interpolate(counted, WINDOW, engine=engine), at=self.run.end)
        assert len(values) == 1, f"{len(values)} series: {expr}"
        return next(iter(values.values()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    for engine in ENGINES:
        obtained(partial(installed_engine, engine))
    return record(tmp_path_factory.mktemp("run"))


@pytest.fixture(
    scope="module",
    params=["victoria_metrics", "prometheus", "rotel-grpc", "rotel-http", "otelcol-grpc", "otelcol-http"],
)
def played(request: pytest.FixtureRequest, run: LiveRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """The run in a database, straight or through a collector."""
    name, _, protocol = request.param.partition("-")
    if not protocol:
        database: Database = request.getfixturevalue(name)
        run.tape.play_http(database.otlp_metrics)
        yield arrived(run, database)
        return
    start = {"rotel": rotel, "otelcol": otelcol}[name]
    find = rotel_program if name == "rotel" else partial(installed_program, name)
    program = obtained(find, optional=name == "otelcol")  # the Collector takes minutes to build
    folder = tmp_path_factory.mktemp(name)
    storage = obtained(partial(installed_program, "victoria-metrics"))
    with (
        victoria_metrics(storage, folder) as database,
        start(program, folder, metrics_to=database.otlp_metrics, traces_to=NOWHERE) as collector,
    ):
        if protocol == "grpc":
            run.tape.play_grpc(collector.grpc)
        else:
            run.tape.play_http(f"{collector.http}/v1/metrics")
        yield arrived(run, database)


def arrived(run: LiveRun, database: Database) -> Played:
    """Once all of it is there: the last of the counts, and of the exports."""
    name, total = f"{REQUESTS.replace('.', '_')}_seconds_count", sum(map(len, run.timelines.values()))
    last = run.tape.last_export(REQUESTS)
    for condition in (f"sum(last_over_time({name}[10m])) == {total}", f"max(timestamp({name})) >= {last:.3f}"):
        database.wait_for(condition, at=last + 1)
    return Played(run, database)


@pytest.mark.parametrize("dashboard", sorted({query.dashboard for query in QUERIES}))
def test_rule_16_every_query_returns_data(played: Played, dashboard: str) -> None:
    """16. Whatever is not listed with its reason has data, on each backend."""
    assert sorted(played.empty(dashboard, ".*") - listed(dashboard)) == []


def listed(dashboard: str) -> set[tuple[str, str]]:
    """Queries that may be empty."""
    side = NETWORK if dashboard == NETWORK else "server"
    return {
        (query.panel, query.legend)
        for query in QUERIES
        if query.dashboard == dashboard and (query.panel in EMPTY_PANELS or (side, query.legend) in EMPTY_SERIES)
    }


def test_the_front_page_shows_transformers_too(played: Played) -> None:
    unknown = {q[1:3] for q in QUERIES if q.dashboard == FRONT_PAGE and q.legend in NO_SERVER}
    unknown |= {q[1:3] for q in QUERIES if q.dashboard == FRONT_PAGE and q.panel in NOT_OF_TRANSFORMERS}
    empty = played.empty(FRONT_PAGE, "transformers")
    assert sorted(empty - unknown - listed(FRONT_PAGE)) == []
    assert unknown <= empty


def test_the_run_rose_until_requests_queued(run: LiveRun) -> None:
    """Or the pictures and numbers of a server at rest were all that is checked."""
    for engine, timelines in run.timelines.items():
        waits = [request["scheduled"] - request["submitted"] for request in timelines if request["scheduled"]]
        assert max(waits) > 20 * min(waits), engine
    assert max_in_flight(run.timelines["vllm"]) > SEQUENCES


def max_in_flight(timelines: list[Kept]) -> int:
    """Most requests between their start and their end at any moment."""
    moments = sorted([(begin(t), 1) for t in timelines] + [(t["ended"], -1) for t in timelines])
    count = most = 0
    for _, change in moments:
        count += change
        most = max(most, count)
    return most


# An account of the timelines that shares no code with what is tested.


def begin(request: Kept) -> int:
    order = ("arrived", "parsed", "received", "submitted", "scheduled")
    return next(request[stamp] for stamp in order if request[stamp] is not None)


def seconds(request: Kept, phase: str) -> float:
    """Time of a request, ended in full, in one phase."""
    ends = {
        "accept": ("arrived", "parsed"),
        "network": ("parsed", "received"),
        "preprocess": ("received", "submitted"),
        "queue": ("submitted", "scheduled"),
        "prefill": ("scheduled", "first_token"),
        "decode": ("first_token", "last_token"),
        "postprocess": ("last_token", "ended"),
        UNSPLIT: ("ended", "ended"),
    }
    first, last = (request[stamp] for stamp in ends[phase])
    if first is None or last is None:
        return 0.0
    moved = {"postprocess": -request["stall"], "network": request["stall"]}.get(phase, 0)
    return (last - first + moved) / 1e9


def durations(timelines: list[Kept]) -> list[float]:
    return [(request["ended"] - begin(request)) / 1e9 for request in timelines]


def first_tokens(timelines: list[Kept]) -> list[float]:
    return [(request["first_token"] - begin(request)) / 1e9 for request in timelines if request["outcome"] == "ok"]


def per_token(timelines: list[Kept]) -> list[float]:
    return [
        (request["last_token"] - request["first_token"]) / 1e9 / (request["output_tokens"] - 1)
        for request in timelines
        if request["outcome"] == "ok" and request["output_tokens"] > 1
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_stack_is_within_2_percent_of_the_mean_end_to_end(played: Played, engine: str) -> None:
    timelines = played.run.timelines[engine]
    mean = sum(durations(timelines)) / len(timelines)
    panel = partial(front_page, "Mean request time by phase")
    bands = {phase: played.total(panel(phase), engine) for phase in shown(played, engine)}
    assert sum(bands.values()) == pytest.approx(mean, rel=0.02)
    assert played.total(panel("measured end to end"), engine) == pytest.approx(mean, rel=0.02)
    # Those that were given up are cut somewhere: each may miss in one band.
    given_up = sum(durations([request for request in timelines if request["outcome"] != "ok"])) / len(timelines)
    for phase, band in bands.items():
        ok = [seconds(request, phase) for request in timelines if request["outcome"] == "ok"]
        assert band == pytest.approx(sum(ok) / len(timelines), abs=given_up + 0.001 * mean), phase


def shown(played: Played, engine: str) -> list[str]:
    """Phases that occurred."""
    matchers = f'gen_ai_provider_name="{engine}"'
    expr = f"count by (otel_llm_phase) (last_over_time(otel_llm_request_phase_duration_seconds_sum{{{matchers}}}[10m]))"
    found = {dict(labels)["otel_llm_phase"] for labels in played.database.select(expr, at=played.run.end)}
    return [phase for phase in (*PHASES, UNSPLIT) if phase in found]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("panel", "instrument", "true"),
    [
        ("End to end", "gen_ai.server.request.duration", durations),
        ("TTFT", "gen_ai.server.time_to_first_token", first_tokens),
        ("TPOT", "gen_ai.server.time_per_output_token", per_token),
    ],
)
def test_quantiles_are_within_one_bucket(
    played: Played, engine: str, panel: str, instrument: str, true: partial[list[float]]
) -> None:
    values = sorted(true(played.run.timelines[engine]))
    bounds = (*conventions.INSTRUMENTS[instrument].buckets, math.inf)
    for legend, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        estimate = played.total(front_page(f"{panel}: quantiles", legend), engine)
        exact = values[math.ceil(quantile * len(values)) - 1]
        assert abs(bisect_left(bounds, estimate * (1 - 1e-9)) - bisect_left(bounds, exact)) <= 1, legend


@pytest.mark.parametrize("engine", ENGINES)
def test_goodput_is_exact(played: Played, engine: str) -> None:
    good = 0
    for request in played.run.timelines[engine]:
        if request["outcome"] == "ok":
            [first], rest = first_tokens([request]), per_token([request])
            good += first <= TTFT_TARGET[engine] and all(each <= TPOT_TARGET for each in rest)
    assert 0 < good < len(played.run.timelines[engine])
    assert played.total(expression("otel-llm-slo", "Goodput", "goodput"), engine) == good


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_and_failures_are_exact(played: Played, engine: str) -> None:
    timelines = played.run.timelines[engine]
    outcomes = Counter(request["outcome"] for request in timelines)
    assert played.total(front_page("Failed requests", "failed"), engine) == pytest.approx(
        1 - outcomes["ok"] / len(timelines)
    )
    tokens = sum(request["output_tokens"] or 0 for request in timelines)  # a refused request knows of none
    assert played.total(front_page("Output tokens/s", "output tokens/s"), engine) == tokens


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_in_flight_are_rate_times_mean(played: Played, engine: str) -> None:
    """
    What the panel draws of the load on an engine, by one window around all of it, against the timelines.

    The engine is idle at both ends, so one export at either end is all that a database may guess. Shorter windows
    end in the load too, where Prometheus leaves out what lies beyond an export that a busy server makes late.
    """
    start, end = played.run.loads[engine]
    requests = played.run.timelines[engine]
    loaded = [request for request in requests if request["ended"] + request["wall_offset"] > start * 1e9]
    rate, mean = len(loaded) / (end - start), sum(durations(loaded)) / len(loaded)
    window = f"{round((end - start) * 1e3)}ms"
    stack = 0.0
    for phase in shown(played, engine):
        expr = interpolate(front_page("Requests in flight by phase", phase), window, engine=engine)
        [value] = played.database.select(expr, at=end).values()
        stack += value
    assert stack == pytest.approx(rate * mean, rel=0.05)
