"""The first row of the front page: the numbers, what limits now, and how to read the rest."""

from __future__ import annotations

from typing import Final

import signals
from page import Section
from panels import Target, notes, number, word
from parts import END_TO_END, TPOT, TTFT, p95
from signals import DURATION, FIRST_TOKEN, OUTPUT_TOKENS, PHASE

from otel_llm.report.palette import COLOURS

_PLAIN_WORDS: Final = {
    "accept": "event loop (accept)",
    "network": "network",
    "preprocess": "parsing and tokenising (preprocess)",
    "queue": "waiting for a slot (queue)",
    "prefill": "reading the prompt (prefill)",
    "decode": "generating tokens (decode)",
    "postprocess": "delivering (postprocess)",
    "unsplit": "phases that cannot be told apart (unsplit)",
}

_HOW_TO_READ: Final = """\
**Latency:** the coloured stack is the mean request time, cut into phases that never overlap; its height is the \
dashed end-to-end line. **Throughput:** requests in flight = requests/s x mean time, and output tokens/s = requests \
in decode / TPOT. So a phase that grows costs latency at once and, when it is `queue`, buys no throughput.

**Where to look:** `queue` on top: add replicas or batch slots, or send less. `prefill`: long prompts, few cache \
hits, chunk size. `decode`: batch size, model, hardware. `network`: a slow reader or path. `accept`, `preprocess`, \
`postprocess`: CPU of the server process. `unsplit`: a stamp was missing, see `otel-llm doctor`.
"""


def key_figures() -> Section:
    """Return the row."""
    limit = f"topk(1, {signals.share_by_phase()})"
    for name, words in _PLAIN_WORDS.items():
        limit = f'label_replace({limit}, "limit", "{words}", "{signals.PHASE_LABEL}", "{name}")'
    return Section(
        "Key figures",
        [
            number(
                "Requests/s",
                Target(DURATION.count_rate(), "requests/s"),
                unit="reqps",
                formula="finished requests / s, every outcome.",
                reading="Throughput in requests.",
            ),
            number(
                "Output tokens/s",
                Target(OUTPUT_TOKENS.rate(), "output tokens/s"),
                unit="short",
                formula="output tokens of finished requests / s.",
                reading="Throughput in tokens. Counted when a request ends, so long requests arrive in lumps.",
            ),
            *(
                p95(latency, reading=f"19 of 20 requests had {latency.what} below this. Its precision is one bucket.")
                for latency in (END_TO_END, TTFT, TPOT)
            ),
            number(
                "TTFT within target",
                Target(FIRST_TOKEN.share_within("$ttft_target"), "within target"),
                unit="percentunit",
                formula="requests with TTFT <= target / requests with a first token.",
                reading="Choose the target above; goodput with joint targets is on the SLO page.",
            ),
            number(
                "Failed requests",
                Target(f"({signals.FAILED.count_rate()} or vector(0)) / {DURATION.count_rate()}", "failed"),
                unit="percentunit",
                formula="requests with an error type / all requests.",
                reading="Errors, rejections and requests that their callers gave up.",
            ),
            number(
                "Unaccounted time",
                Target(f"round(1 - {PHASE.sum_rate()} / {DURATION.sum_rate()}, 0.0001)", "unaccounted"),
                unit="percentunit",
                decimals=2,
                formula="1 - sum of all phases / sum of request durations, to 0.01 %.",
                reading="Zero by construction: anything else is a fault in the measurement. "
                "Time that cannot be told apart is shown as phase `unsplit`.",
            ),
            word(
                "What takes most of the time now",
                Target(limit, "{{limit}}"),
                colours={words: COLOURS[name] for name, words in _PLAIN_WORDS.items()},
                formula="the phase with the largest share of the time of all requests.",
                reading="The place to look first, with its share of request time.",
                width=7,
            ),
            notes(
                "How to read this page",
                _HOW_TO_READ,
                formula="end to end = sum of phases; in flight = requests/s x end to end; tokens/s = in decode / TPOT.",
                width=17,
            ),
        ],
    )
