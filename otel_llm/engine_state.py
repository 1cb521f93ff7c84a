"""
What an engine says of itself, beside its requests: plain data, emitted as it is told.

An engine file gives these to ``probe.emit``, at most a few times per step of
the engine, and there as a ``Later``. It says only what it was told: a field that it does not know stays
None, and what was never told is never exported. A gauge is what was told last,
a count is what came since the last emission; the counts of several processes
that watch one engine add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from otel_llm.recording import TokenGaps
from otel_llm.timeline import Timeline


class EngineState(NamedTuple):
    """The state of an engine after a step."""

    engine: str
    """``gen_ai.provider.name``."""
    model: str | None
    rank: int = 0
    """Which of the engines that serve the model side by side (data parallel)."""
    shared: str | None = None
    """An id of the engine, if other processes are told of it too, each of a part: what was told soon goes stale."""

    running: int | None = None
    """Requests in the batch that goes on."""
    waiting: int | None = None
    """Requests that the scheduler holds and has not admitted, or has preempted."""
    kv_cache_usage: float | None = None
    """Share of the KV cache in use, 0 to 1."""
    sleep_level: int | None = None
    """0 awake, 1 weights offloaded, 2 weights discarded."""

    prefix_cache_queries: int | None = None
    """Prompt tokens looked up in the prefix cache."""
    prefix_cache_hits: int | None = None
    """Those of them that were found."""
    preemptions: int | None = None
    drafted: int | None = None
    """Tokens proposed by speculative decoding."""
    accepted: int | None = None
    """Those of them that were kept."""


class EngineStep(NamedTuple):
    """One pass of the model over a batch."""

    engine: str
    model: str | None
    rank: int
    requests: int
    """Batch size: requests that had a token in the step."""
    tokens: int
    """Those of prompts and those of outputs, drafted ones included."""
    prefill_tokens: int | None = None
    """Those of prompts, and of what a preempted request had to compute again; None if unknown."""
    duration: float | None = None
    """Seconds that the step added to the engine's time; None if unknown."""


class Later(NamedTuple):
    """
    What an engine says at every step, read when it is recorded.

    Nothing that it reads may change any more. Where an application's providers
    record at once, so does this.
    """

    tell: Callable[[], Iterable[Emission]]
    place: str
    """Where an error of ``tell`` is counted."""
    swallow: Callable[[str, Exception], None]

    def told(self) -> Iterable[Emission]:
        """Never raises."""
        try:
            return tuple(self.tell())
        except Exception as error:
            self.swallow(self.place, error)
            return ()


Emission = Timeline | TokenGaps | EngineState | EngineStep | Later
"""What an engine file emits."""
Emit = Callable[[Emission], None]
