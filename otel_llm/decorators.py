"""
For generate loops that nobody's hook can see: ``@measured`` and ``with request()``.

Until ``instrument()`` is called both cost next to nothing and do nothing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from otel_llm import edge, faults, outlet
from otel_llm.recording import Draft, Recording
from otel_llm.streams import watched, watched_async
from otel_llm.timeline import Timeline, ending

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

    What an instrumented engine does inside the block is part of this request
    and not counted again; where nothing is marked by hand, its stamps count.
    """

    # Not set where nothing is instrumented.
    _recording: Recording | None = None
    _outer: Token[edge.Enclosing | None] | None = None

    def __init__(
        self,
        *,
        model: str | None = None,
        operation: str = "text_completion",
        engine: str = "custom",
        request_id: str | None = None,
    ) -> None:
        self._model, self._operation, self._engine, self._request_id = model, operation, engine, request_id
        self._marks: dict[str, Any] = {}

    def __enter__(self) -> request:
        if outlet.active is not None:
            self.started()
            if self._recording is not None:
                self._outer = edge.current.set(self._inside)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._outer is not None:
            with contextlib.suppress(ValueError):  # left in another context than it was entered in
                edge.current.reset(self._outer)
        if self._recording is not None:
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
            self._inside = _Inside()
            recording = self._recording = Recording(live.emit, live.capture())
            recording.engine, recording.operation = self._engine, self._operation
            recording.model, recording.request_id = self._model, self._request_id
        except Exception as fault:
            faults.swallow("request.started", fault)

    def ended(self, error: BaseException | None) -> None:
        """Called by ``with`` and by a watched generator; only the first call counts."""
        recording, marks = self._recording, self._marks
        if recording is None:
            return
        try:
            outcome, reason = ending(error, accepted=True)
            if outcome != "ok":
                marks.pop("last_token", None)
            marks = {"received": None, **self._begun(recording.received, marks), **marks}
            recording.close(outcome, reason, **marks)
        except Exception as fault:
            faults.swallow("request.ended", fault)
        self._recording = None

    def _begun(self, begin: int, marks: dict[str, Any]) -> dict[str, Any]:
        """What is not marked by hand: the stamps of the engines inside, if there were any."""
        engines = self._inside.close()
        if not engines or "scheduled" in marks or "first_token" in marks:
            # Without scheduled() nothing was waited for: the work began at once.
            children = edge.several(engines)["children"] if engines else ()
            return {"submitted" if "scheduled" in marks else "scheduled": begin, "children": children}
        fields = {**edge.several(engines), "received": begin}
        if self._engine == "custom" and self._model is None:
            fields |= {name: getattr(engines[0], name) for name in ("engine", "model", "operation")}
        return fields


class _Inside:
    """The engine requests inside a hand-marked one."""

    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._engines: list[Timeline | Draft] = []
        self._open = True

    def expect(self) -> None:
        """It does not wait for any: what has not ended by its own end is a request of its own."""

    withdraw = expect

    def collect(self, request: Timeline | Draft) -> bool:
        if self._open:
            edge.keep(self._engines, request)
        return self._open

    def close(self) -> list[Timeline]:
        self._open = False
        return edge.timelines(self._engines)


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
            watch = watched_async if inspect.isasyncgenfunction(function) else watched
            return inner if outlet.active is None else watch(inner, _Items(begin(), count))

        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", coroutine)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return stream
        return plain

    return decorate
