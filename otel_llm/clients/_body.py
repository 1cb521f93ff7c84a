"""
The body of an answer, chunk by chunk, for libraries that hand it out as an iterator.

Per usual chunk that is arithmetic on local data, in seconds: Python is quicker
with those than with nanoseconds. What is not usual is told to the attempt. The
loop stands here twice, because what both could share is a call per chunk.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Final

from otel_llm import sse
from otel_llm.clients import _attempt

_NEVER: Final = float("-inf")
"""When the last chunk came, in seconds, where the next one must be looked at."""


def watched(inner: Iterator[bytes], attempt: _attempt.Attempt) -> Generator[bytes, None, None]:
    """The body's chunks, unchanged."""
    clock, keep, held, brace = time.monotonic, attempt.keep, _attempt.HELD_NS / 1e9, sse.BRACE[0]
    asked, got, ready = clock(), _NEVER, False
    try:
        for data in inner:
            if asked - got <= held and len(data) > 2 and data[-3] == brace:
                keep(data)
                got = clock()
                yield data
                asked = clock()
                continue
            got = _looked_at(attempt, got, asked, ready, data)
            yield data
            asked = clock()
            if got == _NEVER:
                ready = _attempt.there(attempt)
    except BaseException as error:
        _over(attempt, got, error)
        raise
    _over(attempt, got, None)


async def watched_async(inner: AsyncIterator[bytes], attempt: _attempt.Attempt) -> AsyncGenerator[bytes, None]:
    """The body's chunks, unchanged."""
    clock, keep, held, brace = time.monotonic, attempt.keep, _attempt.HELD_NS / 1e9, sse.BRACE[0]
    asked, got, ready = clock(), _NEVER, False
    try:
        async for data in inner:
            if asked - got <= held and len(data) > 2 and data[-3] == brace:
                keep(data)
                got = clock()
                yield data
                asked = clock()
                continue
            got = _looked_at(attempt, got, asked, ready, data)
            yield data
            asked = clock()
            if got == _NEVER:
                ready = _attempt.there(attempt)
    except BaseException as error:
        _over(attempt, got, error)
        raise
    _over(attempt, got, None)


def _looked_at(attempt: _attempt.Attempt, last: float, asked: float, ready: bool, data: bytes) -> float:
    """Tell of a chunk that is not as usual; gives when it came, or ``_NEVER`` if the next one is not either."""
    _catch_up(attempt, last)
    _attempt.guard(attempt.took, round(asked * 1e9), ready, data)
    return attempt.got / 1e9 if attempt.usual else _NEVER


def _over(attempt: _attempt.Attempt, last: float, error: BaseException | None) -> None:
    _catch_up(attempt, last)
    _attempt.guard(attempt.ended, error)


def _catch_up(attempt: _attempt.Attempt, last: float) -> None:
    """Tell when the last chunk came, if it was only kept."""
    if last > _NEVER:
        attempt.got = round(last * 1e9)
