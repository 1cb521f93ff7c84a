"""
What the two edges cost: ``python benchmarks/edge_cost.py``.

Thread CPU time, the cases in turn in every round, the least round of each; the
same work without an edge is measured alike and subtracted. Telemetry itself is
not in it (see request_cost.py): spans and sinks are absent here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from otel_llm import outlet
from otel_llm.clients import _attempt, _body
from otel_llm.servers import asgi
from otel_llm.servers._connection import Connection

ROUNDS, TOKENS, CALLS = 100, 2_000, 50
EVENT = b'data: {"choices":[{"index":0,"text":" token"}]}\n\n'
OUT = outlet.Outlet(lambda _timeline: None, lambda headers=None: None, lambda _operation, _model, _start: None, True)
HEADERS = {"content-type": "text/event-stream"}


class Flow:
    """As uvicorn's, never paused."""

    write_paused = False


class Uvicorn(Connection):
    """As uvicorn's, without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()

    def gone(self) -> bool:
        return False


async def drop(_message: Any) -> None:
    """Sends nothing."""


async def never() -> Any:
    """Receives nothing."""


def application(tokens: int) -> asgi.App:
    async def app(_scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(start)
        message = {"type": "http.response.body", "body": EVENT, "more_body": True}
        for _ in range(tokens):
            await send(message)
        await send({"type": "http.response.body", "body": b""})

    return app


async def server(tokens: int, asked: bool | None) -> None:
    """None: without an edge."""
    app, scope = application(tokens), {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    if asked is None:
        await app(scope, never, drop)
        return
    if asked:
        scope["headers"] = [(b"x-otel-llm-timing", b"1")]
    await asgi.serve(OUT, app, Uvicorn(), scope, never, drop)


def attempt() -> _attempt.Attempt:
    found = _attempt.begin("POST", "/v1/completions", "localhost", 8000, {}, b'{"model":"m"}')
    assert found is not None
    found.leaves()
    found.answered(200, HEADERS, None)
    return found


def chunks(tokens: int) -> Iterator[bytes]:
    for _ in range(tokens):
        yield EVENT


async def async_chunks(tokens: int) -> AsyncIterator[bytes]:
    for _ in range(tokens):
        yield EVENT


async def client(tokens: int, edge: bool) -> None:
    for _ in _body.watched(chunks(tokens), attempt()) if edge else chunks(tokens):
        pass


async def async_client(tokens: int, edge: bool) -> None:
    stream = async_chunks(tokens)
    async for _ in _body.watched_async(stream, attempt()) if edge else stream:
        pass


CASES: dict[str, Callable[[int, bool], Awaitable[None]]] = {
    "server": lambda tokens, edge: server(tokens, False if edge else None),
    "server, times asked for": lambda tokens, edge: server(tokens, True if edge else None),
    "client": client,
    "client, async": async_client,
}


async def least() -> dict[tuple[str, int, bool], float]:
    """Seconds per case, number of tokens and edge."""
    found: dict[tuple[str, int, bool], float] = {}
    for _ in range(ROUNDS):
        for name, case in CASES.items():
            for tokens, calls in ((TOKENS, 1), (1, CALLS)):
                for edge in (False, True):
                    begin = time.thread_time()
                    for _ in range(calls):
                        await case(tokens, edge)
                    took = (time.thread_time() - begin) / calls
                    key = (name, tokens, edge)
                    found[key] = min(found.get(key, took), took)
    return found


def main() -> None:
    outlet.active = OUT
    found = asyncio.run(least())
    print(f"{'':26}{'per token, us':>14}{'per request, us':>18}")
    for name in CASES:
        request = found[name, 1, True] - found[name, 1, False]
        token = (found[name, TOKENS, True] - found[name, TOKENS, False] - request) / TOKENS
        print(f"{name:26}{token * 1e6:14.3f}{request * 1e6:18.1f}")


if __name__ == "__main__":
    main()
