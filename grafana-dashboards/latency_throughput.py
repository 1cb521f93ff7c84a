"""The front page: how queue, prefill, decode and the rest combine into latency and throughput."""

from __future__ import annotations

from typing import Any, Final

import signals
from key_figures import key_figures
from page import Section, build_dashboard, choice
from panels import QUANTILE_COLOURS, Target, density, plane, time_series
from signals import DURATION, FIRST_TOKEN, OUTPUT_TOKENS, PER_OUTPUT_TOKEN, PHASE, PHASE_ORDER

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-latency-throughput"
TTFT_TARGETS: Final = ("0.1", "0.25", "0.5", "0.75", "1.25", "2.5", "4.5")

_MEASURED: Final = "measured end to end"


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    target = choice(
        "ttft_target",
        "TTFT target (s)",
        [FIRST_TOKEN.check_bound(bound) for bound in TTFT_TARGETS],
        "0.5",
        "Bucket bounds of the TTFT histogram: a share can be read exactly at these only.",
    )
    sections = [key_figures(), _where_time_goes(), _trade(), _distributions(), _health()]
    return build_dashboard(
        UID,
        "LLM: latency and throughput",
        "Mean request time by phase, requests in flight by phase, and what they mean for tokens per second.",
        sections,
        [target],
    )


def _where_time_goes() -> Section:
    per_request = [Target(f"{signals.phase(name).sum_rate()} / {DURATION.count_rate()}", name) for name in PHASE_ORDER]
    shares = [Target(f"{signals.phase(name).sum_rate()} / {PHASE.sum_rate()}", name) for name in PHASE_ORDER]
    in_flight = [Target(signals.phase(name).sum_rate(), name) for name in PHASE_ORDER]
    tails = [Target(signals.phase(name).quantile(0.95), name) for name in PHASE_ORDER]
    return Section(
        "Where the time goes",
        [
            time_series(
                "Mean request time by phase",
                [*per_request, Target(DURATION.mean(), _MEASURED)],
                unit="s",
                stacked="normal",
                colours=COLOURS,
                dashed=_MEASURED,
                formula="per phase: sum of its time / number of requests. Dashed: mean request duration.",
                reading="The stack must reach the dashed line. The thickest band is where latency is made.",
            ),
            time_series(
                "Share of request time by phase",
                shares,
                unit="percentunit",
                stacked="percent",
                colours=COLOURS,
                formula="sum of the phase's time / sum of the time of all phases.",
                reading="Independent of load: a growing share of `queue` means saturation.",
            ),
            time_series(
                "Requests in flight by phase",
                [*in_flight, Target(DURATION.sum_rate(), "all, from durations")],
                unit="short",
                stacked="normal",
                colours=COLOURS,
                dashed="all, from durations",
                formula="Little's law: requests/s x mean time in the phase = seconds of phase per second.",
                reading="How many requests are in each phase at once. Counted when requests end, "
                "so it lags by about one request.",
            ),
            time_series(
                "95th percentile of each phase",
                tails,
                unit="s",
                colours=COLOURS,
                formula="95th percentile per phase, estimated from buckets.",
                reading="Each line on its own: percentiles of phases do not add up to that of the whole.",
            ),
        ],
    )


def _trade() -> Section:
    in_decode = signals.phase("decode").sum_rate()
    tokens = Target(OUTPUT_TOKENS.rate(), "output tokens/s")
    in_flight = Target(DURATION.sum_rate(), "requests in flight")
    decoding = Target(in_decode, "requests in decode")
    colours = {"mean": QUANTILE_COLOURS["p50"], "p95": QUANTILE_COLOURS["p95"]}
    return Section(
        "Latency against throughput",
        [
            plane(
                "End-to-end latency against throughput",
                [(tokens, Target(DURATION.mean(), "mean")), (tokens, Target(DURATION.quantile(0.95), "p95"))],
                unit="s",
                x_title="output tokens/s",
                x_unit="short",
                colours=colours,
                formula="mean and 95th percentile of request duration, each against output tokens/s.",
                reading="One point per moment. Where the cloud turns upwards the server is saturated: "
                "more load buys latency, not tokens.",
                width=8,
            ),
            plane(
                "TTFT against concurrency",
                [
                    (in_flight, Target(FIRST_TOKEN.mean(), "mean")),
                    (in_flight, Target(FIRST_TOKEN.quantile(0.95), "p95")),
                ],
                unit="s",
                x_title="requests in flight",
                x_unit="short",
                colours=colours,
                formula="mean and 95th percentile of TTFT against requests/s x mean duration.",
                reading="The knee is the concurrency that the batch can hold.",
                width=8,
            ),
            plane(
                "TPOT against requests in decode",
                [
                    (decoding, Target(PER_OUTPUT_TOKEN.mean(), "mean")),
                    (decoding, Target(PER_OUTPUT_TOKEN.quantile(0.95), "p95")),
                ],
                unit="s",
                x_title="requests in decode",
                x_unit="short",
                colours=colours,
                formula="mean and 95th percentile of TPOT against requests/s x mean decode time.",
                reading="Flat: decode is bound by memory and batching is free. Rising: every further request "
                "slows all others.",
                width=8,
            ),
            time_series(
                "Output tokens per second: measured and explained",
                [
                    Target(OUTPUT_TOKENS.rate(), "measured"),
                    Target(f"{in_decode} / ({PER_OUTPUT_TOKEN.mean()})", "in decode / TPOT"),
                ],
                unit="short",
                dashed="in decode / TPOT",
                colours={"measured": COLOURS["decode"]},
                formula="measured: output tokens/s. Explained: requests in decode / mean TPOT.",
                reading="Both agree while requests are alike; TPOT is a mean over requests, not over tokens, and the "
                "first token of each request belongs to prefill.",
                width=24,
                height=7,
            ),
        ],
    )


def _distributions() -> Section:
    measured = (
        ("TTFT", FIRST_TOKEN, "time to first token"),
        ("TPOT", PER_OUTPUT_TOKEN, "time per output token"),
        ("End to end", DURATION, "request duration"),
    )
    quantiles = [
        time_series(
            f"{name}: quantiles",
            [Target(metric.quantile(int(text[1:]) / 100), text) for text in QUANTILE_COLOURS],
            unit="s",
            colours=QUANTILE_COLOURS,
            formula=f"quantiles of {what}, estimated from buckets.",
            reading="A dot is one request: open it to see its trace. A gap between p50 and p99 that widens "
            "means that some requests wait for others.",
            width=8,
        )
        for name, metric, what in measured
    ]
    distributions = [
        density(
            f"{name}: distribution",
            Target(metric.buckets(), "{{le}}"),
            unit="s",
            formula=f"requests per bucket of {what} in each window.",
            reading="Windows overlap, so compare colours, not counts. Two bands are two kinds of request.",
        )
        for name, metric, what in measured
    ]
    return Section("Distributions", [*quantiles, *distributions])


def _health() -> Section:
    return Section(
        "Health of this telemetry",
        [
            time_series(
                "Exported and lost",
                [
                    Target(signals.EXPORTED.rate(signals.label("otel_llm.signal")), "{{otel_llm_signal}} exported"),
                    Target(signals.DROPPED.rate(signals.label("otel_llm.signal")), "{{otel_llm_signal}} lost"),
                ],
                unit="short",
                formula="spans and metric points per second that the collector accepted, and that were lost.",
                reading="Lost must be zero. Only where otel-llm exports by its own pipeline.",
                height=7,
            ),
            time_series(
                "Errors of otel-llm itself",
                [Target(signals.ERRORS.rate(signals.label("otel_llm.fault.place")), "{{otel_llm_fault_place}}")],
                unit="short",
                formula="swallowed errors per second, by place.",
                reading="Empty while there are none. The service never sees them; the log says each kind once.",
                none_means="None",
                height=7,
            ),
        ],
    )
