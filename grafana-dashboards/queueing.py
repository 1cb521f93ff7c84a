"""Who waits, how long, and what the batch is made of."""

from __future__ import annotations

from typing import Any, Final

import signals
from engine_panels import engine_section
from page import Section, build_dashboard
from panels import Target, notes, number, time_series
from parts import Measured, against, distribution, mean_stack, p95, quantile_lines
from signals import CACHED_TOKENS, DURATION, FIRST_TOKEN, INPUT_TOKENS, KV_CACHE, OUTPUT_TOKENS, PHASE, PREEMPTIONS

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-queue"
_QUEUE: Final = signals.phase("queue")
_WAIT: Final = Measured("queue", _QUEUE, "the phase queue")
_PREFILL: Final = signals.phase("prefill")
_DECODE: Final = signals.phase("decode")
_BEFORE: Final = ("accept", "preprocess", "queue", "prefill")
"""Phases before the first token. ``network`` has a part after it too and is left out."""

_HOW_TO_READ: Final = """\
`queue` is **all** waiting from submission to the first scheduling, the engine's input queue included. The first two \
rows count requests by Little's law from the phases of finished requests, which works with every engine; the last one \
is the **engine's own account**. Waiting with a small batch is a limit of memory (KV cache, preemptions) or of the \
scheduler; waiting with a full batch is load.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    description = "Waiting before the first scheduling, and the requests and tokens that the batch is made of."
    return build_dashboard(UID, "LLM: queue and batching", description, [_waiting(), _batch(), engine_section()])


def _waiting() -> Section:
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
                width=4,
            ),
            number(
                "Mean batch",
                Target(f"{_PREFILL.sum_rate()} + {_DECODE.sum_rate()}", "batch"),
                unit="short",
                decimals=1,
                formula="requests/s x (mean prefill + mean decode).",
                reading="Requests that the engine works on at once.",
                width=4,
            ),
            p95(_WAIT, reading="19 of 20 requests were scheduled sooner than this.", width=4),
            number(
                "Share of time in queue",
                Target(f"{_QUEUE.sum_rate()} / {PHASE.sum_rate()}", "queue"),
                unit="percentunit",
                formula="sum of queue / sum of all phases.",
                reading="Above one half an alert is raised: requests wait more than they are worked on.",
                width=4,
            ),
            number(
                "KV cache in use",
                Target(KV_CACHE.highest(), "KV cache"),
                unit="percentunit",
                formula="the fullest engine's mean share of the KV cache in use.",
                reading="Near 100 % requests wait, or are taken out of the batch, for memory.",
                width=4,
            ),
            number(
                "Preemptions/s",
                Target(PREEMPTIONS.rate(), "preemptions/s"),
                unit="short",
                formula="times per second that a request was taken out of the batch.",
                reading="Each throws work away: its tokens are computed again. Lower the batch or give it more memory.",
                width=4,
            ),
            notes("How to read this page", _HOW_TO_READ, formula="batch = in prefill + in decode.", height=4),
            quantile_lines(
                _WAIT,
                reading="p50 near zero and a high p99: bursts. All high: more load than the batch can take.",
                width=8,
            ),
            distribution(_WAIT, reading="Windows overlap, so compare colours, not counts.", width=8),
            against(
                _WAIT,
                Target(DURATION.sum_rate(), "requests in flight"),
                "short",
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
            mean_stack(
                "Time to first token: what it is made of",
                signals.phase,
                _BEFORE,
                DURATION,
                "measured TTFT",
                total=FIRST_TOKEN,
                reading="The first tokens wait for the thickest band; the dashed line is of requests that ended in "
                "full. A gap below it is a slow upload.",
                width=8,
            ),
        ],
    )
