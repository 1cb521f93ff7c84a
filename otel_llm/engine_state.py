"""
What an engine says of itself, beside its requests: plain data, emitted as it is told.

An engine file gives these to ``probe.emit``; what comes at every step of the
engine it keeps in a ``Later``. It says only what it was told: a field that it
does not know stays None, and what was never told is never exported. A gauge is
what was told last, a count is what came since the last emission; the counts of
several processes that watch one engine add up.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from otel_llm.recording import Draft, TokenGaps
from otel_llm.timeline import Timeline

LATER_LIMIT: Final = 4096
"""Steps that may wait to be read; the oldest give way where nobody listens any more."""


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


class Later:
    """
    What an engine says at every step, read when it is recorded: the engine's thread keeps what it was told of.

    It is emitted when something is kept and nobody has been told so. Nothing
    that ``read`` looks at may change any more. Where an application's
    providers record at once, so does this.
    """

    __slots__ = ("__weakref__", "_announced", "_emit", "_kept", "_place", "_swallow", "read")

    def __init__(
        self,
        emit: Callable[[Later], None],
        read: Callable[[Any], Iterable[Emission]],
        place: str,
        swallow: Callable[[str, Exception], None],
    ) -> None:
        """``place`` is where an error of ``read`` is counted."""
        self._emit, self.read, self._place, self._swallow = emit, read, place, swallow
        self._kept: deque[Any] = deque(maxlen=LATER_LIMIT)
        self._announced = False
        _laters.add(self)

    def keep(self, told: Any) -> None:
        """To be read later, in this order."""
        self._kept.append(told)
        if not self._announced or len(self._kept) > LATER_LIMIT // 2:
            self._announced = True
            self._emit(self)

    def told(self) -> list[Emission]:
        """Read what is kept by now. Never raises; an error costs what it came from."""
        self._announced = False  # first: what is kept from here on announces itself
        found: list[Emission] = []
        for _ in range(len(self._kept)):
            try:
                told = self._kept.popleft()
            except IndexError:  # another thread reads too
                break
            try:
                found.extend(self.read(told))
            except Exception as error:
                self._swallow(self._place, error)
        return found


_laters: Final[WeakSet[Later]] = WeakSet()


def _forget() -> None:
    """In a forked child: what was kept is the parent's to tell, and nobody has been told of what comes."""
    for later in _laters:
        later._kept.clear()
        later._announced = False


os.register_at_fork(after_in_child=_forget)

Emission = Timeline | Draft | TokenGaps | EngineState | EngineStep | Later
"""What an engine file emits."""
Emit = Callable[[Emission], None]
