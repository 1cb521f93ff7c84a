"""What the engine says of itself: its gauges, its counters and its steps."""

from __future__ import annotations

from typing import Final

import signals
from page import Section
from panels import QUANTILE_COLOURS, Panel, Target, time_series
from parts import Measured, distribution
from signals import (
    ACCEPTED,
    BATCH,
    COMPUTED_TOKENS,
    DRAFTED,
    ENGINE_LABEL,
    INSTANCE,
    KV_CACHE,
    PREEMPTIONS,
    RUNNING,
    STEP_DURATION,
    STEP_TOKENS,
    WAITING,
)

from otel_llm.report.palette import COLOURS

_ENGINES: Final = (*INSTANCE, ENGINE_LABEL)
_ENGINE: Final = "".join(f"{{{{{label}}}}}" for label in INSTANCE) + f" engine {{{{{ENGINE_LABEL}}}}}"
_FROM_PHASES: Final = "from phases"


def engine_section() -> Section:
    """Return the row."""
    return Section("The engine's own account", [*_batches(), *_memory(), *_work()])


def _batches() -> list[Panel]:
    from_phases = " + ".join(signals.phase(name).sum_rate() for name in ("queue", "prefill", "decode"))
    return [
        time_series(
            "Waiting and running",
            [
                Target(WAITING.average(), "waiting"),
                Target(RUNNING.average(), "running"),
                Target(from_phases, _FROM_PHASES),
            ],
            unit="short",
            stacked="normal",
            colours={"waiting": COLOURS["queue"], "running": COLOURS["decode"]},
            dashed=_FROM_PHASES,
            formula="means of the scheduler's gauges. Dashed: requests/s x mean time in queue, prefill and decode.",
            reading="Two accounts of the same requests. The gauges know of requests that have not ended yet; a gap "
            "that stays is work that has no phases, or requests that never reach the scheduler.",
            width=8,
        ),
        distribution(
            Measured("batch size", BATCH, "the requests in a step"),
            unit="short",
            reading="A band at the top is a full batch. Steps are counted, so idle time does not show.",
            width=8,
        ),
        distribution(
            Measured("tokens per step", STEP_TOKENS, "the tokens in a step"),
            unit="short",
            reading="A low band is decode alone, a high one is prompts; the highest possible is the token budget.",
            width=8,
        ),
    ]


def _memory() -> list[Panel]:
    return [
        time_series(
            "Tokens per step and requests per step",
            [Target(STEP_TOKENS.mean(), "tokens"), Target(BATCH.mean(), "requests")],
            unit="short",
            colours={"tokens": QUANTILE_COLOURS["p50"], "requests": QUANTILE_COLOURS["p95"]},
            formula="mean tokens, and mean requests, of a step of the engine.",
            reading="One token per request is pure decode; what is above it are prompts, or drafted tokens.",
            width=8,
        ),
        time_series(
            "KV-cache use by engine",
            [Target(KV_CACHE.highest(*_ENGINES), _ENGINE)],
            unit="percentunit",
            formula="mean share of the KV cache in use.",
            reading="It fills with running requests and their lengths. At the top, requests wait or are preempted.",
            width=8,
        ),
        time_series(
            "Preemptions by engine",
            [Target(PREEMPTIONS.rate(*_ENGINES), _ENGINE)],
            unit="short",
            formula="times per second that the scheduler took a request out of the batch.",
            reading="Above zero the KV cache is too small for the batch: time is lost and tokens are computed twice.",
            width=8,
        ),
    ]


def _work() -> list[Panel]:
    return [
        time_series(
            "Time in steps by engine",
            [Target(STEP_DURATION.sum_rate(*_ENGINES), _ENGINE)],
            unit="percentunit",
            formula="seconds of steps / s, with OTEL_LLM_STEP_DETAIL.",
            reading="Near 100 % the engine is never idle: only a larger batch or faster steps give more tokens. Well "
            "below it with requests waiting: something else holds it up.",
            width=8,
        ),
        time_series(
            "Tokens computed, by what for",
            [Target(COMPUTED_TOKENS.where("otel_llm.phase", phase).rate(), phase) for phase in ("prefill", "decode")],
            unit="short",
            stacked="normal",
            colours=COLOURS,
            formula="tokens that went through the model / s, with OTEL_LLM_STEP_DETAIL.",
            reading="Those of prompts and of preempted requests, and those of answers. Counted when computed, not when "
            "requests end.",
            width=8,
        ),
        time_series(
            "Drafted tokens that were kept",
            [Target(f"{ACCEPTED.rate()} / {DRAFTED.rate()}", "kept")],
            unit="percentunit",
            colours={"kept": COLOURS["decode"]},
            formula="accepted / drafted tokens of speculative decoding.",
            reading="Low: drafting costs more than it saves. Empty without speculative decoding.",
            none_means="No speculative decoding",
            width=8,
        ),
    ]
