"""Whether the load is shared evenly, and which instance is slow."""

from __future__ import annotations

from typing import Any, Final

import signals
from page import Section, build_dashboard
from panels import Target, notes, number, time_series
from parts import END_TO_END, TTFT, Measured
from signals import DURATION, FAILED, INSTANCE, OUTPUT_TOKENS

UID: Final = "otel-llm-instances"
# Backends know one of the two labels, so the text is never doubled.
_NAME: Final = "".join(f"{{{{{label}}}}}" for label in INSTANCE)

_HOW_TO_READ: Final = """\
One line per process (`service.instance.id`). A balancer that counts requests evens out the **share**; users feel \
**requests in flight** and **queue**. Even shares with uneven latency point at a slow machine; uneven shares with \
even latency are harmless until the load grows.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    description = "Share of requests, requests in flight, latency and queue of each instance, and how uneven they are."
    return build_dashboard(UID, "LLM: instances", description, [_balance(), _latency()])


def _balance() -> Section:
    requests, in_flight = DURATION.count_rate(*INSTANCE), DURATION.sum_rate(*INSTANCE)
    return Section(
        "Balance",
        [
            number(
                "Instances with traffic",
                Target(f"count({requests} > 0)", "instances"),
                unit="short",
                formula="instances that finished a request in the window.",
                reading="Fewer than you run: some get no traffic, or do not report.",
                width=4,
            ),
            *(
                number(
                    f"Imbalance, {what}",
                    Target(f"stddev({per_instance}) / avg({per_instance})", what),
                    unit="percentunit",
                    formula=f"standard deviation / mean of {what} over instances.",
                    reading=reading,
                    width=4,
                )
                for what, per_instance, reading in (
                    (
                        "requests",
                        requests,
                        "0 is an even split. With few requests, chance alone gives 1 / sqrt(requests per instance).",
                    ),
                    (
                        "in flight",
                        in_flight,
                        "Larger than that of requests: some instances are slower, or got the longer requests.",
                    ),
                )
            ),
            notes(
                "How to read this page",
                _HOW_TO_READ,
                formula="imbalance = coefficient of variation over instances.",
                height=4,
                width=12,
            ),
            time_series(
                "Share of requests",
                [Target(f"{requests} / on () group_left () {DURATION.count_rate()}", _NAME)],
                unit="percentunit",
                stacked="percent",
                formula="requests/s of the instance / requests/s of all.",
                reading="Bands of equal width are an even split.",
            ),
            time_series(
                "Requests in flight",
                [Target(in_flight, _NAME)],
                unit="short",
                stacked="normal",
                formula="Little's law: requests/s x mean duration, per instance.",
                reading="The load that each instance carries at once.",
            ),
            time_series(
                "Output tokens per second",
                [Target(OUTPUT_TOKENS.rate(*INSTANCE), _NAME)],
                unit="short",
                stacked="normal",
                formula="output tokens/s of finished requests, per instance.",
                reading="Throughput of each instance.",
            ),
            time_series(
                "Failed requests",
                [Target(FAILED.count_rate(*INSTANCE), _NAME)],
                unit="reqps",
                formula="requests with an error type / s, per instance.",
                reading="Empty while there are none.",
                none_means="None",
            ),
        ],
    )


def _latency() -> Section:
    panels = [
        time_series(
            f"{latency.title}: p95 by instance",
            [Target(latency.metric.quantile(0.95, *INSTANCE), _NAME)],
            unit="s",
            formula=f"95th percentile of {latency.what} per instance, estimated from buckets.",
            reading="One line above the rest is a slow instance; all together rising is load.",
            width=8,
        )
        for latency in (END_TO_END, TTFT, Measured("queue", signals.phase("queue"), "the phase queue"))
    ]
    return Section("Latency", panels)
