"""The prefix cache, and what it does to prefill and to the first token."""

from __future__ import annotations

from typing import Any, Final

import signals
from page import Section, build_dashboard
from panels import QUANTILE_COLOURS, Target, notes, number, time_series
from parts import TTFT, Measured, against
from signals import CACHED_TOKENS, FOUND, INPUT_TOKENS, LOOKED_UP

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-caches"
_CACHED, _COMPUTED = COLOURS["decode"], COLOURS["prefill"]

_HOW_TO_READ: Final = """\
Prompt tokens whose KV entries came from a cache need no prefill. A higher **hit share** should lower the mean \
**prefill** and with it **TTFT**; where it does not, prefill is not what the first token waits for. **Prefill time \
per computed token** is the cost of the rest: it should not depend on the hit share. Empty page: the engine reports \
no cached tokens, or caching is off.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    description = "Prompt tokens from the prefix cache, and their effect on prefill and time to first token."
    return build_dashboard(UID, "LLM: caches", description, [_hits(), _effect()])


_HIT_SHARE: Final = f"{CACHED_TOKENS.rate()} / {INPUT_TOKENS.rate()}"
_COMPUTED_TOKENS: Final = f"{INPUT_TOKENS.rate()} - {CACHED_TOKENS.rate()}"
_PREFILL: Final = signals.phase("prefill")


def _hits() -> Section:
    return Section(
        "Hits",
        [
            number(
                "Hit share",
                Target(_HIT_SHARE, "hit share"),
                unit="percentunit",
                formula="cached prompt tokens / prompt tokens of finished requests.",
                reading="By tokens, not by requests: long shared prefixes weigh more.",
                width=6,
            ),
            number(
                "Prompt tokens per second",
                Target(INPUT_TOKENS.rate(), "prompt tokens/s"),
                unit="short",
                formula="prompt tokens of finished requests / s, cached ones included.",
                reading="The demand on prefill if there were no cache.",
                width=6,
            ),
            notes("How to read this page", _HOW_TO_READ, formula="computed = prompt - cached.", height=4, width=12),
            time_series(
                "Prompt tokens: cached and computed",
                [Target(CACHED_TOKENS.rate(), "cached"), Target(_COMPUTED_TOKENS, "computed")],
                unit="short",
                stacked="normal",
                colours={"cached": _CACHED, "computed": _COMPUTED},
                formula="prompt tokens/s, by whether their KV entries came from a cache.",
                reading="Only the computed ones cost prefill.",
                width=8,
                height=8,
            ),
            time_series(
                "Prefix cache: looked up and found",
                [Target(LOOKED_UP.rate(), "looked up"), Target(FOUND.rate(), "found")],
                unit="short",
                colours={"looked up": QUANTILE_COLOURS["p95"], "found": _CACHED},
                formula="prompt tokens / s that the engine looked up in its prefix cache, and that it found.",
                reading="Counted when requests are scheduled, and again when a preempted one comes back. vLLM may look "
                "up less than all: a prompt whose log probabilities are asked for skips the cache.",
                width=8,
                height=8,
            ),
            time_series(
                "Hit share: engine and requests",
                [Target(f"{FOUND.rate()} / {LOOKED_UP.rate()}", "engine"), Target(_HIT_SHARE, "finished requests")],
                unit="percentunit",
                colours={"engine": _CACHED, "finished requests": QUANTILE_COLOURS["p50"]},
                formula="found / looked up by the engine; cached / prompt tokens of finished requests.",
                reading="Two accounts of one thing, of other moments: they differ while the load changes.",
                width=8,
                height=8,
            ),
        ],
    )


def _effect() -> Section:
    return Section(
        "Effect",
        [
            *(
                against(measured, Target(_HIT_SHARE, "hit share"), "percentunit", reading=reading, width=8)
                for measured, reading in (
                    (Measured("prefill", _PREFILL, "the phase prefill"), "Falling to the right: the cache works."),
                    (
                        TTFT,
                        "Flat while prefill falls: the first token waits for something else, most often queue.",
                    ),
                )
            ),
            time_series(
                "Prefill time per computed token",
                [Target(f"{_PREFILL.sum_rate()} / ({_COMPUTED_TOKENS})", "per computed token")],
                unit="s",
                colours={"per computed token": COLOURS["prefill"]},
                formula="sum of prefill / (prompt - cached tokens).",
                reading="Rises when requests in one batch share the time: then prefill is limited by batching, "
                "not by the length of prompts.",
                width=8,
                height=10,
            ),
        ],
    )
