"""The prefix cache, and what it does to prefill and to the first token."""

from __future__ import annotations

from typing import Any, Final

import signals
from page import Section, build_dashboard
from panels import QUANTILE_COLOURS, Target, notes, number, plane, time_series
from signals import CACHED_TOKENS, FIRST_TOKEN, INPUT_TOKENS

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
                width=24,
                height=8,
            ),
        ],
    )


def _effect() -> Section:
    hit_share = Target(_HIT_SHARE, "hit share")
    return Section(
        "Effect",
        [
            plane(
                "Prefill against hit share",
                [(hit_share, Target(_PREFILL.mean(), "mean prefill"))],
                unit="s",
                x_title="hit share",
                x_unit="percentunit",
                colours={"mean prefill": COLOURS["prefill"]},
                formula="mean of the phase prefill against cached / prompt tokens.",
                reading="Falling to the right: the cache works.",
                width=8,
            ),
            plane(
                "TTFT against hit share",
                [(hit_share, Target(FIRST_TOKEN.mean(), "mean TTFT"))],
                unit="s",
                x_title="hit share",
                x_unit="percentunit",
                colours={"mean TTFT": QUANTILE_COLOURS["p50"]},
                formula="mean TTFT against cached / prompt tokens.",
                reading="Flat while prefill falls: the first token waits for something else, most often queue.",
                width=8,
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
