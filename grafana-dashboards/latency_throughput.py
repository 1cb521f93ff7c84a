"""The front page: how queue, prefill, decode and the rest combine into latency and throughput."""

from __future__ import annotations

from typing import Any, Final

import signals
from key_figures import key_figures
from page import Section, build_dashboard, choice
from panels import QUANTILE_COLOURS, Target, plane, time_series
from parts import END_TO_END, ITL, TPOT, TTFT, against, distribution, mean_stack, quantile_lines, share_stack
from signals import BATCH, CAPPED, DROPPED, DURATION, ERRORS, EXPORTED, FIRST_TOKEN, OUTPUT_TOKENS, PHASE, PHASE_ORDER

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-latency-throughput"
TTFT_TARGETS: Final = ("0.1", "0.25", "0.5", "0.75", "1.25", "2.5", "4.5")

_BY_ENGINE: Final = "the engine's own count"


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
    return Section(
        "Where the time goes",
        [
            mean_stack(
                "Mean request time by phase",
                signals.phase,
                PHASE_ORDER,
                DURATION,
                "measured end to end",
                reading="The stack must reach the dashed line. The thickest band is where latency is made.",
            ),
            share_stack(
                "Share of request time by phase",
                signals.phase,
                PHASE_ORDER,
                PHASE,
                reading="Independent of load: a growing share of `queue` means saturation.",
            ),
            time_series(
                "Requests in flight by phase",
                [
                    *(Target(signals.phase(name).sum_rate(), name) for name in PHASE_ORDER),
                    Target(signals.engine_requests(), _BY_ENGINE),
                ],
                unit="short",
                stacked="normal",
                colours=COLOURS,
                dashed=_BY_ENGINE,
                formula="Little's law: requests/s x mean time in the phase = seconds of phase per second. Dashed: mean "
                "of the gauges of waiting and running requests.",
                reading="How many requests are in each phase at once. Counted when requests end, so the stack lags by "
                "about one request behind the engine's gauges, which know `queue`, `prefill` and `decode` only. "
                "Where several API servers share an engine, the highest of their gauges counts.",
            ),
            time_series(
                "95th percentile of each phase",
                [Target(signals.phase(name).quantile(0.95), name) for name in PHASE_ORDER],
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
    batch = Target(BATCH.mean(), "batch size")
    per_token = f"({TPOT.metric.mean()})"
    return Section(
        "Latency against throughput",
        [
            against(
                END_TO_END,
                tokens,
                "short",
                reading="One point per moment. Where the cloud turns upwards the server is saturated: "
                "more load buys latency, not tokens.",
                width=8,
            ),
            against(
                TTFT,
                Target(DURATION.sum_rate(), "requests in flight"),
                "short",
                reading="Requests in flight are requests/s x mean duration. The knee is the concurrency that the "
                "batch can hold.",
                width=8,
            ),
            against(
                TPOT,
                Target(in_decode, "requests in decode"),
                "short",
                reading="Requests in decode are requests/s x mean decode time. Flat: decode is bound by memory and "
                "batching is free. Rising: every further request slows all others.",
                width=8,
            ),
            against(
                TPOT,
                batch,
                "short",
                reading="The same against the requests in a step, by the engine's own count. Empty where otel-llm "
                "does not run in the engine's core.",
                width=8,
            ),
            plane(
                "Output tokens/s against batch size",
                [(batch, tokens)],
                unit="short",
                x_title=batch.legend,
                x_unit="short",
                colours={tokens.legend: COLOURS["decode"]},
                formula="output tokens of finished requests / s against requests per step.",
                reading="A straight line: each further request in the batch adds its tokens in full. Where it "
                "flattens, a larger batch buys nothing.",
                width=8,
            ),
            time_series(
                "Output tokens per second: measured and explained",
                [
                    Target(OUTPUT_TOKENS.rate(), "measured"),
                    Target(f"{in_decode} / {per_token}", "in decode / TPOT"),
                    Target(f"{signals.RUNNING.average()} / {per_token}", "running / TPOT"),
                ],
                unit="short",
                dashed="in decode / TPOT",
                colours={"measured": COLOURS["decode"], "running / TPOT": QUANTILE_COLOURS["p95"]},
                formula="measured: output tokens/s. Explained: requests in decode, or the engine's gauge of running "
                "requests, / mean TPOT.",
                reading="All agree while requests are alike; TPOT is a mean over requests, not over tokens, the first "
                "token of each request belongs to prefill, and running requests are in prefill or in decode.",
                width=8,
                height=10,
            ),
        ],
    )


def _distributions() -> Section:
    measured = (TTFT, TPOT, ITL, END_TO_END)
    quantiles = [
        quantile_lines(
            latency,
            reading="A dot is one request: open it to see its trace. A gap between p50 and p99 that widens "
            "means that some requests wait for others."
            if latency is not ITL
            else "Gaps between the outputs of single requests (vLLM): a p99 far above TPOT is a stutter, of prefills "
            "between decode steps or of preemptions, which the mean of a request hides.",
            width=6,
            height=8,
        )
        for latency in measured
    ]
    distributions = [
        distribution(
            latency,
            reading="Windows overlap, so compare colours, not counts. Two bands are two kinds of request.",
            width=6,
            height=8,
        )
        for latency in measured
    ]
    return Section("Distributions", [*quantiles, *distributions])


def _health() -> Section:
    signal = signals.label("otel_llm.signal")
    return Section(
        "Health of this telemetry",
        [
            time_series(
                "Exported and lost",
                [
                    Target(EXPORTED.rate(signal), "{{otel_llm_signal}} exported"),
                    Target(DROPPED.rate(signal), "{{otel_llm_signal}} lost"),
                    Target(CAPPED.rate(signal), "requests whose {{otel_llm_signal}} the cap left out"),
                ],
                unit="short",
                formula="spans and metric points per second that the collector accepted, and that were lost; requests "
                "per second that OTEL_LLM_SAMPLED_PER_SECOND left without spans.",
                reading="Lost must be zero. The cap loses no metrics: raise it if the traces of a peak are wanted. "
                "Only where otel-llm exports by its own pipeline.",
                height=7,
            ),
            time_series(
                "Errors of otel-llm itself",
                [Target(ERRORS.rate(signals.label("otel_llm.fault.place")), "{{otel_llm_fault_place}}")],
                unit="short",
                formula="swallowed errors per second, by place.",
                reading="Empty while there are none. The service never sees them; the log says each kind once.",
                none_means="None",
                height=7,
            ),
        ],
    )
