"""
Iterators of the host, watched from outside.

A watched stream hands every item, exception, cancellation and close through
unchanged and in the same order; it only tells its watcher about them. An error
of the watcher is swallowed and counted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from otel_llm import faults

Swallow = Callable[[str, Exception], None]
"""Takes the place and the error; that of an engine counts for its breaker as well."""


class Watcher(Protocol):
    """What is told; ``ended`` may be called more than once."""

    def started(self) -> None:
        """The first item is asked for."""

    def item(self, value: Any, /) -> None:
        """An item is about to be handed to the caller. Called per token: keep it cheap."""

    def ended(self, error: BaseException | None) -> None:
        """The stream is exhausted (None), failed, was cancelled, closed or dropped."""


class _Stream:
    """What both kinds share."""

    _inner: Any

    def __init__(self, inner: Any, watcher: Watcher, swallow: Swallow = faults.swallow) -> None:
        self._inner = inner
        self._watcher = watcher
        self._swallow = swallow
        self._started = False

    def _start(self) -> None:
        self._started = True
        try:
            self._watcher.started()
        except Exception as fault:
            self._swallow("stream.started", fault)

    def _item(self, value: Any) -> None:
        try:
            self._watcher.item(value)
        except Exception as fault:
            self._swallow("stream.item", fault)

    def _end(self, error: BaseException | None) -> None:
        try:
            self._watcher.ended(error)
        except Exception as fault:
            self._swallow("stream.ended", fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __del__(self) -> None:
        # Dropped half-way. One that was never asked for an item did nothing.
        if self.__dict__.get("_started", False):
            self._end(GeneratorExit())


class AsyncStream(_Stream, AsyncGenerator[Any, Any]):
    """An asynchronous generator, watched."""

    def __init__(self, inner: AsyncGenerator[Any, Any], watcher: Watcher, swallow: Swallow = faults.swallow) -> None:
        super().__init__(inner, watcher, swallow)
        self._advance, self._tell = inner.__anext__, watcher.item

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        # Written out, not by _step: this runs for every token.
        if not self._started:
            self._start()
        try:
            value = await self._advance()
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        try:
            self._tell(value)
        except Exception as fault:
            self._swallow("stream.item", fault)
        return value

    def asend(self, value: Any) -> Coroutine[Any, Any, Any]:
        """Like ``__anext__``, with a value."""
        return self._step(self._inner.asend, value)

    def athrow(self, *error: Any) -> Coroutine[Any, Any, Any]:
        """Throw into the generator; what escapes from it ends the stream."""
        return self._step(self._inner.athrow, *error)

    async def aclose(self) -> None:
        """Close the generator; before its end that is an abort."""
        if self._started:
            self._end(GeneratorExit())
        await self._inner.aclose()

    async def _step(self, advance: Callable[..., Awaitable[Any]], *values: Any) -> Any:
        if not self._started:
            self._start()
        try:
            value = await advance(*values)
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._item(value)
        return value


class SyncStream(_Stream, Generator[Any, Any, Any]):
    """A generator, watched."""

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Any:
        return self._step(self._inner.__next__)

    def send(self, value: Any) -> Any:
        """Like ``__next__``, with a value."""
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        """Throw into the generator; what escapes from it ends the stream."""
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        """Close the generator; before its end that is an abort."""
        if self._started:
            self._end(GeneratorExit())
        self._inner.close()

    def _step(self, advance: Callable[..., Any], *values: Any) -> Any:
        if not self._started:
            self._start()
        try:
            value = advance(*values)
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._item(value)
        return value
