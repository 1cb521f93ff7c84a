from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from otel_llm.demo.load import Load
from otel_llm.report.levels import Level

FIRST_TOKEN, REST = 0.2, 0.1
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-01")


@dataclass
class Fake:
    """An OpenAI server that takes known times."""

    url: str = ""
    fail: bool = False
    cut: bool = False
    in_flight: int = 0
    most: int = 0
    traces: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["stream"]
        parent = TRACEPARENT.fullmatch(request.headers["traceparent"])
        assert parent
        self.traces.append(parent[1])
        self.paths.append(request.path)
        if self.fail:
            return web.Response(status=503, text="overloaded")
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": a comment is no token\n\n")
            await asyncio.sleep(FIRST_TOKEN)
            await self._event(response, {"choices": [{"text": "a", "delta": {"content": "a"}}]})
            await asyncio.sleep(REST)
            if not self.cut:
                await self._event(response, {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
                await response.write(b"data: [DONE]\n\n")
            return response
        finally:
            self.in_flight -= 1

    async def _event(self, response: web.StreamResponse, event: object) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@asynccontextmanager
async def served(fake: Fake) -> AsyncIterator[Fake]:
    app = web.Application()
    app.router.add_post("/v1/{any:.*}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


def nothing() -> None:
    """Never a reason to stop."""


async def test_times_are_those_of_the_server_and_the_number_in_flight_is_held() -> None:
    level = Level(3)
    async with served(Fake()) as fake:
        await Load(fake.url, "m").run(level, 0.5, nothing)
    assert fake.most == 3
    assert len(level.exchanges) == len(fake.traces) == 6
    assert {exchange.trace_id for exchange in level.exchanges} == set(fake.traces)
    assert set(fake.paths) == {"/v1/chat/completions", "/v1/completions"}
    for exchange in level.exchanges:
        assert exchange.error is None
        assert exchange.time_to_first_token is not None
        assert exchange.time_to_first_token >= FIRST_TOKEN * 1e9
        assert exchange.duration - exchange.time_to_first_token >= REST * 0.9e9
        assert exchange.output_tokens in (16, 32, 48, 64, 96)
    assert level.end is not None
    # All were busy for two rounds: the window ends with the first client that stops.
    assert level.end - level.start >= 2 * (FIRST_TOKEN + REST) * 1e9


async def test_failures_are_told() -> None:
    level = Level(1)
    async with served(Fake(fail=True)) as fake:
        await Load(fake.url, "m").run(level, 0.01, nothing)
        with pytest.raises(RuntimeError, match="HTTP 503: overloaded"):
            await Load(fake.url, "m").warm_up(1)
    assert level.exchanges[0].error == "HTTP 503: overloaded"


async def test_a_stream_that_ends_early_is_a_failure() -> None:
    level = Level(1)
    async with served(Fake(cut=True)) as fake:
        await Load(fake.url, "m").run(level, 0.01, nothing)
    assert level.exchanges[0].error == "the stream ended early"


async def test_a_server_that_went_away_is_a_failure() -> None:
    level = Level(1)
    async with served(Fake()) as fake:
        pass
    await Load(fake.url, "m").run(level, 0.01, nothing)
    assert "ConnectorError" in str(level.exchanges[0].error)


async def test_the_check_stops_all_clients() -> None:
    def check() -> None:
        raise RuntimeError("gone")

    async with served(Fake()) as fake:
        with pytest.raises(RuntimeError, match="gone"):
            await Load(fake.url, "m").run(Level(4), 60, check)
        await asyncio.sleep(0.05)
        assert fake.in_flight == 0
