"""
What otel-llm does with its own errors: swallow, count, say so once in a while.

An error of ours must never reach the host. Every place that swallows calls
``swallow``, so that nothing is lost silently: the count leaves as
``otel_llm.telemetry.errors`` and stands in ``otel_llm.status()``, and a test
that registers an observer sees the exception itself.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger("otel_llm")
if logger.level == logging.NOTSET:
    # Of its own, not the root's: what vLLM's server imports sets that to ERROR, and nothing that is lost would be said.
    logger.setLevel(logging.WARNING)

errors: Final[Counter[str]] = Counter()
"""Swallowed errors of this process by the place that swallowed them."""

observers: Final[list[Callable[[str, Exception], None]]] = []
"""Called with (place, exception) for each swallowed error; used by tests."""

QUIET_SECONDS: Final = 60.0
"""At most one log line per place in this time."""

BREAKER_LIMIT: Final = 100
"""Errors after which the hooks of one engine switch themselves off."""

_spoken: dict[str, float] = {}


def swallow(place: str, error: Exception) -> None:
    """Count an error of our own, log it at most once a minute per place, carry on."""
    errors[place] += 1
    for observer in observers:
        observer(place, error)
    warn(place, "otel_llm: error in %s (%d so far): %s", place, errors[place], type(error).__name__, error=error)


def warn(key: str, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a warning unless one with the same key was logged in the last minute."""
    now = time.monotonic()
    if now - _spoken.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
        return
    _spoken[key] = now
    # The message of an exception may quote a prompt: only the traceback's code
    # lines are shown, and only to whoever asks for debug output.
    logger.warning(message, *args)
    if error is not None:
        logger.debug("otel_llm: traceback\n%s", "".join(traceback.format_tb(error.__traceback__)))


class Breaker:
    """Switches the hooks of one engine off after ``BREAKER_LIMIT`` errors."""

    __slots__ = ("closed", "engine", "seen")

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.seen = 0
        self.closed = True

    @property
    def reason(self) -> str:
        """Why the hooks are off, empty while they are not."""
        return "" if self.closed else f"switched off after {self.seen} errors"

    def swallow(self, place: str, error: Exception) -> None:
        """Count one error; the last one allowed opens the breaker and says so."""
        swallow(f"{self.engine}.{place}", error)
        self.seen += 1
        if self.closed and self.seen >= BREAKER_LIMIT:
            self.closed = False
            logger.error("otel_llm: %d errors, the hooks of %s are switched off", self.seen, self.engine)


def forget() -> None:
    """Start anew: in a forked child, whose parent counts its own errors, and in tests."""
    errors.clear()
    _spoken.clear()


os.register_at_fork(after_in_child=forget)
