"""
Generators of the host, watched from outside.

A watched generator is a generator again, which hands every item, value,
exception, cancellation and close through unchanged and in the same order; it
only tells its watcher about them. An error of the watcher is swallowed and
counted. What was never asked for an item did nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
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


async def watched_async(
    inner: AsyncGenerator[Any, Any], watcher: Watcher, swallow: Swallow = faults.swallow
) -> AsyncGenerator[Any, Any]:
    """Watch an asynchronous generator."""
    _tell(swallow, "stream.started", watcher.started)
    advance, item = inner.__anext__, watcher.item
    try:
        step = advance()
        while True:
            value = await step
            try:
                item(value)
            except Exception as fault:
                swallow("stream.item", fault)
            try:
                sent = yield value
            except GeneratorExit as closed:
                _tell(swallow, "stream.ended", watcher.ended, closed)
                await inner.aclose()
                raise
            except BaseException as error:
                step = inner.athrow(error)
            else:
                step = advance() if sent is None else inner.asend(sent)
    except StopAsyncIteration:
        _tell(swallow, "stream.ended", watcher.ended, None)
    except BaseException as error:
        _tell(swallow, "stream.ended", watcher.ended, error)
        raise


def watched(
    inner: Generator[Any, Any, Any], watcher: Watcher, swallow: Swallow = faults.swallow
) -> Generator[Any, Any, Any]:
    """Watch a generator."""
    _tell(swallow, "stream.started", watcher.started)
    item = watcher.item
    try:
        value = next(inner)
        while True:
            try:
                item(value)
            except Exception as fault:
                swallow("stream.item", fault)
            try:
                sent = yield value
            except GeneratorExit as closed:
                _tell(swallow, "stream.ended", watcher.ended, closed)
                inner.close()
                raise
            except BaseException as error:
                thrown = error
            else:
                value = next(inner) if sent is None else inner.send(sent)
                continue
            value = inner.throw(thrown)
    except StopIteration as stop:
        _tell(swallow, "stream.ended", watcher.ended, None)
        return stop.value
    except BaseException as error:
        _tell(swallow, "stream.ended", watcher.ended, error)
        raise


def _tell(swallow: Swallow, place: str, tell: Callable[..., None], *args: Any) -> None:
    try:
        tell(*args)
    except Exception as fault:
        swallow(place, fault)
