"""Who waits, how long, and what the batch is made of."""

from __future__ import annotations

from typing import Any, Final

import signals
from page import Section, build_dashboard
from panels import QUANTILE_COLOURS, Target, density, notes, number, plane, time_series
from signals import CACHED_TOKENS, DURATION, FIRST_TOKEN, INPUT_TOKENS, OUTPUT_TOKENS, PHASE

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-queue"
_QUEUE: Final = signals.phase("queue")
_PREFILL: Final = signals.phase("prefill")
_DECODE: Final = signals.phase("decode")
_BEFORE: Final = ("accept", "preprocess", "queue", "prefill")
"""Phases before the first token. ``network`` has a part after it too and is left out."""

_HOW_TO_READ: Final = """\
`queue` is **all** waiting from submission to the first scheduling, the engine's input queue included. Requests that \
wait, read their prompt and generate are counted by Little's law from the phases of finished requests, not read from \
the engine's gauges: the sum of the last two is the mean **batch**. Waiting with a small batch is a limit of memory or \
of the scheduler; waiting with a full batch is load.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    description = "Waiting before the first scheduling, and the requests and tokens that the batch is made of."
    return build_dashboard(UID, "LLM: queue and batching", description, [_waiting(), _batch()])


def _waiting() -> Section:
    in_flight = Target(DURATION.sum_rate(), "requests in flight")
    return Section(
        "Waiting",
        [
            number(
                "Requests waiting",
                Target(_QUEUE.sum_rate(), "waiting"),
                unit="short",
                decimals=1,
                formula="Little's law: requests/s x mean time in queue.",
                reading="Mean over the window; counted when requests end.",
                width=6,
            ),
            number(
                "Mean batch",
                Target(f"{_PREFILL.sum_rate()} + {_DECODE.sum_rate()}", "batch"),
                unit="short",
                decimals=1,
                formula="requests/s x (mean prefill + mean decode).",
                reading="Requests that the engine works on at once.",
                width=6,
            ),
            number(
                "p95 queue",
                Target(_QUEUE.quantile(0.95), "queue"),
                unit="s",
                formula="95th percentile of the phase queue, estimated from buckets.",
                reading="19 of 20 requests were scheduled sooner than this.",
                width=6,
            ),
            number(
                "Share of time in queue",
                Target(f"{_QUEUE.sum_rate()} / {PHASE.sum_rate()}", "queue"),
                unit="percentunit",
                formula="sum of queue / sum of all phases.",
                reading="Above one half an alert is raised: requests wait more than they are worked on.",
                width=6,
            ),
            notes("How to read this page", _HOW_TO_READ, formula="batch = in prefill + in decode.", height=4),
            time_series(
                "Queue: quantiles",
                [Target(_QUEUE.quantile(int(text[1:]) / 100), text) for text in QUANTILE_COLOURS],
                unit="s",
                colours=QUANTILE_COLOURS,
                formula="quantiles of the phase queue, estimated from buckets.",
                reading="p50 near zero and a high p99: bursts. All high: more load than the batch can take.",
                width=8,
            ),
            density(
                "Queue: distribution",
                Target(_QUEUE.buckets(), "{{le}}"),
                unit="s",
                formula="requests per bucket of the phase queue in each window.",
                reading="Windows overlap, so compare colours, not counts.",
            ),
            plane(
                "Queue against requests in flight",
                [(in_flight, Target(_QUEUE.mean(), "mean")), (in_flight, Target(_QUEUE.quantile(0.95), "p95"))],
                unit="s",
                x_title="requests in flight",
                x_unit="short",
                colours={"mean": QUANTILE_COLOURS["p50"], "p95": QUANTILE_COLOURS["p95"]},
                formula="mean and 95th percentile of queue against requests/s x mean duration.",
                reading="Flat up to the size of the batch, then rising with every further request.",
                width=8,
                height=9,
            ),
        ],
    )


def _batch() -> Section:
    computed = f"{INPUT_TOKENS.rate()} - ({CACHED_TOKENS.rate()} or vector(0))"
    return Section(
        "Batch",
        [
            time_series(
                "Requests by what is done with them",
                [
                    Target(_QUEUE.sum_rate(), "queue"),
                    Target(_PREFILL.sum_rate(), "prefill"),
                    Target(_DECODE.sum_rate(), "decode"),
                ],
                unit="short",
                stacked="normal",
                colours=COLOURS,
                formula="Little's law: requests/s x mean time in the phase.",
                reading="`prefill` and `decode` are the batch. It stops growing where the queue begins.",
                width=8,
            ),
            time_series(
                "Tokens per second: prompts and answers",
                [Target(computed, "computed prompt tokens"), Target(OUTPUT_TOKENS.rate(), "output tokens")],
                unit="short",
                colours={"computed prompt tokens": COLOURS["prefill"], "output tokens": COLOURS["decode"]},
                formula="prompt tokens that no cache held / s, and output tokens / s, of finished requests.",
                reading="The two kinds of work that share the engine's steps.",
                width=8,
            ),
            time_series(
                "Time to first token: what it is made of",
                [
                    *(Target(f"{signals.phase(name).sum_rate()} / {DURATION.count_rate()}", name) for name in _BEFORE),
                    Target(FIRST_TOKEN.mean(), "measured TTFT"),
                ],
                unit="s",
                stacked="normal",
                colours=COLOURS,
                dashed="measured TTFT",
                formula="per phase: sum of its time / requests. Dashed: mean TTFT of requests that ended in full.",
                reading="The first tokens wait for the thickest band. A gap below the dashed line is a slow upload.",
                width=8,
            ),
        ],
    )
