"""A load generator: a fixed number of streaming requests in flight, of mixed lengths."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import aiohttp

from otel_llm.report.levels import Exchange, Level

WORDS: Final = ("the", "model", "reads", "a", "prompt", "and", "writes", "one", "token", "while", "others", "wait")
PROMPT_WORDS: Final = (8, 16, 32, 64, 128, 256)
OUTPUT_TOKENS: Final = (16, 32, 48, 64, 96)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=120)


class Load:
    """
    Clients of an OpenAI server.

    They alternate chat and plain completions, always streaming. Every request
    brings a ``traceparent``, by which its spans are found again. The same
    requests are sent in every run.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model
        self._numbers = count()

    async def warm_up(self, requests: int) -> None:
        """Send some requests that belong to no level. Raises RuntimeError if one fails."""
        async with self._session() as session:
            answers = await asyncio.gather(*(self._exchange(session) for _ in range(requests)))
        for answer in answers:
            if answer.error:
                raise RuntimeError(f"the server refused a request: {answer.error}")

    async def run(self, level: Level, seconds: float, check: Callable[[], None]) -> None:
        """
        Keep ``level.concurrency`` requests in flight for some seconds, then let them end.

        ``check`` is called after each request and may raise to stop it all.
        """
        deadline = time.monotonic() + seconds

        async def client(session: aiohttp.ClientSession) -> None:
            while True:
                level.exchanges.append(await self._exchange(session))
                check()
                if time.monotonic() >= deadline:
                    # The first client that stops ends the time in which all were busy.
                    level.end = level.end or time.time_ns()
                    return

        async with self._session() as session, _Group() as group:
            level.start = time.time_ns()
            for _ in range(level.concurrency):
                group.start(client(session))

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_TIMEOUT, trust_env=False)

    def _request(self) -> tuple[str, dict[str, Any]]:
        number = next(self._numbers)
        draw = random.Random(number)
        prompt = " ".join(draw.choices(WORDS, k=draw.choice(PROMPT_WORDS)))
        body = {
            "model": self._model,
            "max_tokens": draw.choice(OUTPUT_TOKENS),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if number % 2:
            return "/v1/completions", body | {"prompt": prompt}
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}

    async def _exchange(self, session: aiohttp.ClientSession) -> Exchange:
        path, body = self._request()
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        first: int | None = None
        last = b""
        error: str | None = None
        sent = time.monotonic_ns()
        try:
            async with session.post(self._url + path, json=body, headers=headers) as answer:
                if answer.status != 200:
                    error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                async for line in answer.content:
                    if first is None and _event(line).get("choices"):
                        first = time.monotonic_ns() - sent
                    if line.startswith(b"data: {"):
                        last = line
        except (aiohttp.ClientError, asyncio.TimeoutError) as problem:
            error = repr(problem)
        duration = time.monotonic_ns() - sent
        tokens = _usage(last)
        if error is None and tokens is None:
            error = "the stream ended early"
        return Exchange(trace_id, duration, first, tokens, error)


def _event(line: bytes) -> dict[str, Any]:
    """The object of a server-sent event, empty if it has none."""
    if not line.startswith(b"data: {"):
        return {}
    event: dict[str, Any] = json.loads(line[6:])
    return event


def _usage(line: bytes) -> int | None:
    """Output tokens, from the event that ends a stream."""
    usage = _event(line).get("usage") or {}
    tokens: int | None = usage.get("completion_tokens")
    return tokens


class _Group:
    """Tasks that end together: the first error cancels the others (asyncio.TaskGroup is newer than Python 3.10)."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Any) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def __aenter__(self) -> _Group:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
