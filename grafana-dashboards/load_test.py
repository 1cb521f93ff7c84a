"""Two runs side by side: two time ranges, or two runs by their id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import signals
from page import Section, build_dashboard, choice, found
from panels import Panel, Target, notes, plane, time_series
from parts import END_TO_END, TPOT, TTFT, Measured, mean_stack
from signals import DURATION, OUTPUT_TOKENS, PHASE_ORDER, RUN_LABEL, Metric

UID: Final = "otel-llm-load-test"
_EARLIER: Final = ("5m", "10m", "15m", "30m", "1h", "2h", "6h", "12h", "1d", "7d")

_HOW_TO_READ: Final = """\
**Two time ranges:** set the time range to run A and **B earlier by** to how much earlier run B began: both are drawn \
on the same clock. **Two runs by id:** give each service a run id, `OTEL_RESOURCE_ATTRIBUTES=otel_llm.run.id=...`, \
choose them as **A** and **B**, and *not shifted* if they ran at the same time or one after the other within the time \
range. Compare runs **at the same throughput**: on the planes, lower is better at equal x, further right at equal y.
"""


@dataclass(frozen=True)
class Run:
    """One side of the comparison."""

    name: str
    variable: str
    """Of the dashboard: its id."""
    offset: str
    colour: str

    def of(self, metric: Metric) -> Metric:
        """The metric of this run."""
        chosen = metric.of_run(self.variable)
        return chosen.before(self.offset) if self.offset else chosen


RUNS: Final = (Run("A", "run", "", "#56B4E9"), Run("B", "other_run", "$baseline", "#E69F00"))
_COLOURS: Final = {run.name: run.colour for run in RUNS}


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    shift = choice(
        "baseline",
        "B earlier by",
        # Prometheus 2 takes no offset of zero.
        {"not shifted": "1ms", **dict(zip(_EARLIER, _EARLIER, strict=True))},
        "1h",
        "How much earlier than the time range run B took place.",
    )
    ids = [found(run.variable, f"Run {run.name}", DURATION, RUN_LABEL, "", multi=False) for run in RUNS]
    description = "Latency and throughput of one run against another, of other time or other id."
    sections = [_planes(), _phases(), _over_time()]
    return build_dashboard(UID, "LLM: load test A/B", description, sections, [*ids, shift])


def _planes() -> Section:
    text = notes("How to read this page", _HOW_TO_READ, formula="B = the same query of another run, earlier.", height=4)
    return Section("Latency against throughput", [text, *(_plane(latency) for latency in (END_TO_END, TTFT, TPOT))])


def _plane(latency: Measured) -> Panel:
    return plane(
        f"{latency.title} against throughput",
        [
            (
                Target(run.of(OUTPUT_TOKENS).rate(), f"tokens/s of {run.name}"),
                Target(run.of(latency.metric).mean(), run.name),
            )
            for run in RUNS
        ],
        unit="s",
        x_title="output tokens/s",
        x_unit="short",
        colours=_COLOURS,
        formula=f"mean {latency.what} against output tokens/s, of both runs.",
        reading="The lower curve is the better one at equal throughput.",
        width=8,
        join="outer",
    )


def _phases() -> Section:
    panels = []
    for run in RUNS:

        def part(name: str, run: Run = run) -> Metric:
            return run.of(signals.phase(name))

        panels.append(
            mean_stack(
                f"{run.name}: mean request time by phase",
                part,
                PHASE_ORDER,
                run.of(DURATION),
                "measured end to end",
                reading="The phase that changed between the two pictures is what the change did.",
            )
        )
    return Section("Where the time goes", panels)


def _over_time() -> Section:
    signals_over_time = (
        ("Requests per second", DURATION, Metric.count_rate, "reqps", "finished requests / s."),
        ("Output tokens per second", OUTPUT_TOKENS, Metric.rate, "short", "output tokens of finished requests / s."),
        ("p95 TTFT", TTFT.metric, _p95, "s", "95th percentile of TTFT, estimated from buckets."),
        ("p95 TPOT", TPOT.metric, _p95, "s", "95th percentile of TPOT, estimated from buckets."),
    )
    panels = [
        time_series(
            title,
            [Target(query(run.of(metric)), run.name) for run in RUNS],
            unit=unit,
            colours=_COLOURS,
            formula=formula,
            reading="Both runs on the clock of this range.",
            width=6,
        )
        for title, metric, query, unit, formula in signals_over_time
    ]
    return Section("Over time", panels)


def _p95(metric: Metric) -> str:
    return metric.quantile(0.95)
