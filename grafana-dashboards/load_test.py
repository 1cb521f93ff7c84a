"""Two time ranges side by side: before and after a change, or two load tests."""

from __future__ import annotations

from typing import Any, Final

import signals
from page import Section, build_dashboard, choice
from panels import Target, notes, plane, time_series
from signals import DURATION, FIRST_TOKEN, OUTPUT_TOKENS, PER_OUTPUT_TOKEN, PHASE_ORDER, Metric

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-load-test"
_AGO: Final = "$baseline"
_NOW, _BEFORE = "this range", "baseline"
_RUNS: Final = {_NOW: "#56B4E9", _BEFORE: "#E69F00"}

_HOW_TO_READ: Final = """\
Set the time range to one run and **Baseline** to how much earlier the other one began: both are drawn on the same \
clock. Compare runs **at the same throughput**: on the planes, lower is better at equal x, and further right is \
better at equal y. To compare two deployments of the same time, open this page twice with different jobs or models.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    baseline = choice(
        "baseline",
        "Baseline (earlier by)",
        ["5m", "10m", "15m", "30m", "1h", "2h", "6h", "12h", "1d", "7d"],
        "1h",
        "How much earlier the run to compare with took place.",
    )
    sections = [_planes(), _phases(), _over_time()]
    description = "Latency and throughput of this time range against an earlier one."
    return build_dashboard(UID, "LLM: load test A/B", description, sections, [baseline])


def _planes() -> Section:
    tokens = Target(OUTPUT_TOKENS.rate(), "tokens/s, this range")
    tokens_before = Target(OUTPUT_TOKENS.before(_AGO).rate(), "tokens/s, baseline")
    panels = [
        plane(
            f"{title} against throughput",
            [(tokens, Target(metric.mean(), _NOW)), (tokens_before, Target(metric.before(_AGO).mean(), _BEFORE))],
            unit="s",
            x_title="output tokens/s",
            x_unit="short",
            colours=_RUNS,
            formula=f"mean {what} against output tokens/s, in both ranges.",
            reading="The lower curve is the better one at equal throughput.",
            width=8,
        )
        for title, metric, what in (
            ("End to end", DURATION, "request duration"),
            ("TTFT", FIRST_TOKEN, "time to first token"),
            ("TPOT", PER_OUTPUT_TOKEN, "time per output token"),
        )
    ]
    text = notes("How to read this page", _HOW_TO_READ, formula="baseline = the same query, earlier.", height=4)
    return Section("Latency against throughput", [text, *panels])


def _phases() -> Section:
    panels = []
    for title, requests, of_phase in (
        ("This range", DURATION, signals.phase),
        ("Baseline", DURATION.before(_AGO), _phase_before),
    ):
        targets = [Target(f"{of_phase(name).sum_rate()} / {requests.count_rate()}", name) for name in PHASE_ORDER]
        panels.append(
            time_series(
                f"{title}: mean request time by phase",
                [*targets, Target(requests.mean(), "measured end to end")],
                unit="s",
                stacked="normal",
                colours=COLOURS,
                dashed="measured end to end",
                formula="per phase: sum of its time / number of requests. Dashed: mean request duration.",
                reading="The phase that changed between the two pictures is what the change did.",
            )
        )
    return Section("Where the time goes", panels)


def _phase_before(name: str) -> Metric:
    return signals.phase(name).before(_AGO)


def _over_time() -> Section:
    panels = [
        time_series(
            title,
            [Target(now, _NOW), Target(before, _BEFORE)],
            unit=unit,
            colours=_RUNS,
            formula=formula,
            reading="Both runs on the clock of this range.",
            width=6,
        )
        for title, now, before, unit, formula in (
            (
                "Requests per second",
                DURATION.count_rate(),
                DURATION.before(_AGO).count_rate(),
                "reqps",
                "finished requests / s.",
            ),
            (
                "Output tokens per second",
                OUTPUT_TOKENS.rate(),
                OUTPUT_TOKENS.before(_AGO).rate(),
                "short",
                "output tokens of finished requests / s.",
            ),
            (
                "p95 TTFT",
                FIRST_TOKEN.quantile(0.95),
                FIRST_TOKEN.before(_AGO).quantile(0.95),
                "s",
                "95th percentile of TTFT, estimated from buckets.",
            ),
            (
                "p95 TPOT",
                PER_OUTPUT_TOKEN.quantile(0.95),
                PER_OUTPUT_TOKEN.before(_AGO).quantile(0.95),
                "s",
                "95th percentile of TPOT, estimated from buckets.",
            ),
        )
    ]
    return Section("Over time", panels)
