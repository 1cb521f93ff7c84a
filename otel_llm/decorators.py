"""
For generate loops that nobody's hook can see: ``@measured`` and ``with request()``.

Until ``instrument()`` is called both cost next to nothing and do nothing.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from otel_llm import faults, outlet
from otel_llm.recording import Recording
from otel_llm.streams import AsyncStream, SyncStream
from otel_llm.timeline import ending

P = ParamSpec("P")
R = TypeVar("R")


class request:
    """
    One request, marked by hand::

        with otel_llm.request(model="m") as r:
            wait_for_a_free_slot()
            r.scheduled()
            for token in generate():
                r.tokens(1)

    It starts on entry and ends on exit. ``scheduled()`` ends the queue; a
    request that never calls it did not wait. ``first_token()`` ends the
    prefill, unless ``tokens()`` did; the last ``tokens()`` ends the decode. An
    exception is recorded and passes. Use each object once.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        operation: str = "text_completion",
        engine: str = "custom",
        request_id: str | None = None,
    ) -> None:
        self._model, self._operation, self._engine, self._request_id = model, operation, engine, request_id
        self._recording: Recording | None = None
        self._marks: dict[str, Any] = {}

    def __enter__(self) -> request:
        self.started()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.ended(error)

    def scheduled(self) -> None:
        """The wait is over, work begins. Only the first call counts."""
        self._marks.setdefault("scheduled", time.monotonic_ns())

    def first_token(self) -> None:
        """The first output token is there. Only the first call counts."""
        self._marks.setdefault("first_token", time.monotonic_ns())

    def tokens(self, count: int = 1) -> None:
        """``count`` more output tokens are there; call it as they come."""
        now = time.monotonic_ns()
        marks = self._marks
        marks.setdefault("first_token", now)
        marks["last_token"] = now
        marks["output_tokens"] = marks.get("output_tokens", 0) + count

    def prompt(self, tokens: int, cached: int | None = None) -> None:
        """Say how many tokens the prompt has, and how many of these came from a cache."""
        self._marks["prompt_tokens"], self._marks["cached_tokens"] = tokens, cached

    def started(self) -> None:
        """Called by ``with`` and by a watched generator."""
        live = outlet.active
        if live is None:
            return
        try:
            self._recording = Recording(
                live.emit,
                engine=self._engine,
                operation=self._operation,
                model=self._model,
                request_id=self._request_id,
                context=live.capture(),
            )
        except Exception as fault:
            faults.swallow("request.started", fault)

    def ended(self, error: BaseException | None) -> None:
        """Called by ``with`` and by a watched generator; only the first call counts."""
        recording, marks = self._recording, self._marks
        if recording is None:
            return
        try:
            begin = recording.received
            # Without scheduled() nothing was waited for: the work began at once.
            marks["submitted" if "scheduled" in marks else "scheduled"] = begin
            outcome, reason = ending(error, accepted=True)
            if outcome != "ok":
                marks.pop("last_token", None)
            recording.close(outcome, reason, received=None, **marks)
        except Exception as fault:
            faults.swallow("request.ended", fault)
        self._recording = None


class _Items:
    """Takes each item of a generator as tokens of its request."""

    def __init__(self, owner: request, count: Callable[[Any], int] | None) -> None:
        self.started, self.ended = owner.started, owner.ended
        self._owner, self._count = owner, count

    def item(self, value: Any) -> None:
        self._owner.tokens(1 if self._count is None else self._count(value))


def measured(
    *,
    model: str | None = None,
    operation: str = "text_completion",
    engine: str = "custom",
    count: Callable[[Any], int] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Make each call of a function one request: plain, async, generator or async generator.

    Of a generator the items are its tokens: the first one ends the prefill,
    the last one the decode. ``count`` says how many tokens an item holds; one
    each without it. Of any other function only the total is known. Arguments,
    results, exceptions and laziness are those of the function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        def begin() -> request:
            return request(model=model, operation=operation, engine=engine)

        @functools.wraps(function)
        def plain(*args: P.args, **kwargs: P.kwargs) -> R:
            if outlet.active is None:
                return function(*args, **kwargs)
            with begin():
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            with begin():
                return await cast("Awaitable[Any]", function(*args, **kwargs))

        @functools.wraps(function)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Any:
            inner: Any = function(*args, **kwargs)
            kind = AsyncStream if inspect.isasyncgenfunction(function) else SyncStream
            return inner if outlet.active is None else kind(inner, _Items(begin(), count))

        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", coroutine)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return stream
        return plain

    return decorate
