"""
Thousands of requests at a real vLLM server, many of them aborted, cut off or refused: none is lost, none is left.

A few hundred of them are part of the tests, the whole is `make test-soak`.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from otel_llm.demo.server import MODEL, Server
from otel_llm.report.receiver import Receiver
from tests.engines.vllm_live import prompt

pytestmark = pytest.mark.vllm
CONCURRENCY = 64
ROUND = 100
"""Requests between two looks at the server's memory."""

Way = str
WAYS = {
    "plain": 30,
    "stream": 30,
    "samples": 6,
    "prompts": 6,
    "leave": 8,
    "leave-stream": 8,
    "too-long": 4,
    "nobody": 4,
    "broken": 4,
}
"""What callers do, and how often."""


def body_of(way: Way, choose: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "prompt": prompt(choose.choice([4, 20, 60, 90]))}
    body |= {"max_tokens": choose.choice([1, 8, 24, 60]), "ignore_eos": True, "temperature": 0.7}
    change: dict[Way, dict[str, Any]] = {
        "stream": {"stream": True},
        "samples": {"n": 2},
        "prompts": {"prompt": [prompt(4), prompt(9)]},
        "leave": {"max_tokens": 300},
        "leave-stream": {"max_tokens": 300, "stream": True},
        "too-long": {"prompt": prompt(600)},
        "nobody": {"model": "nobody"},
        "broken": {"max_tokens": -1},
    }
    return {**body, **change.get(way, {})}


async def ask(session: aiohttp.ClientSession, url: str, trace: str, way: Way, choose: random.Random) -> str:
    """Ask, and say what became of it as the caller sees it: ok, refused or left."""
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    sent = asyncio.Event()

    async def whole() -> str:
        address, body = f"{url}/v1/completions", body_of(way, choose)
        async with session.post(address, json=body, headers=headers, trace_request_ctx=sent) as answer:
            await answer.read()
            return "ok" if answer.status == 200 else "refused"

    asking = asyncio.create_task(whole())
    if way.startswith("leave"):
        await sent.wait()  # who leaves before has asked nothing
        await asyncio.wait({asking}, timeout=choose.uniform(0.02, 1.0))
        if asking.cancel():
            await asyncio.wait({asking})
            return "left"
    return await asking


async def tell_sent(_session: aiohttp.ClientSession, context: Any, _chunk: object) -> None:
    """The body of a request is being written."""
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.set()


async def load(url: str, count: int, choose: random.Random) -> tuple[dict[str, tuple[Way, str]], list[dict[str, Any]]]:
    """All requests by trace id, and what the server said of itself after each round."""
    gate, fates, looks = asyncio.Semaphore(CONCURRENCY), {}, []
    connector, tracing = aiohttp.TCPConnector(force_close=True, limit=0), aiohttp.TraceConfig()
    tracing.on_request_chunk_sent.append(tell_sent)
    settings: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total=300), "trace_configs": [tracing]}
    async with aiohttp.ClientSession(connector=connector, **settings) as session:

        async def one(trace: str, way: Way) -> None:
            async with gate:
                fates[trace] = (way, await ask(session, url, trace, way, choose))

        for _ in range(count // ROUND):
            ways = choose.choices(list(WAYS), list(WAYS.values()), k=ROUND)
            await asyncio.gather(*(one(secrets.token_hex(16), way) for way in ways))
            looks.append(await settled(session, url))
    return fates, looks


async def settled(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """What the server says when all of a round is over; who left is noticed a little later."""
    limit = time.monotonic() + 20
    while True:
        async with session.get(f"{url}/probe") as answer:
            look: dict[str, Any] = await answer.json()
        if not look["left"] or time.monotonic() > limit:
            return look
        await asyncio.sleep(0.2)


def requests_of(receiver: Receiver, expected: int) -> dict[str, Any]:
    """The request's span by trace id; waits for all of them."""
    limit = time.monotonic() + 30
    while True:
        spans = receiver.spans()
        ids = {span.span_id for span in spans}
        roots = [span for span in spans if span.parent_id not in ids]
        if len(roots) >= expected or time.monotonic() > limit:
            break
        time.sleep(0.5)
    found = {span.trace_id: span for span in roots}
    assert len(found) == len(roots), "a request has two spans"
    return found


def counted(receiver: Receiver, expected: int) -> int:
    """Requests by the duration's histogram; waits for all of them."""
    limit = time.monotonic() + 20
    while True:
        latest: dict[tuple[Any, ...], int] = {}
        for point in receiver.points("gen_ai.server.request.duration"):
            latest[tuple(sorted(point.attributes.items()))] = point.count
        if sum(latest.values()) >= expected or time.monotonic() > limit:
            return sum(latest.values())
        time.sleep(0.5)


ALLOWED = {"ok": {"ok"}, "refused": {"reject"}, "left": {"abort", "ok"}}
"""Caller's view -> the server's: a caller may leave when all is done."""


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.soak)])
def test_every_request_is_accounted_for(
    tiny_model: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.Random(count)
    with Receiver() as receiver:
        server = Server(tiny_model, receiver.url, tmp_path / "log")
        server._command += ["--max-model-len", "512", "--max-num-batched-tokens", "256", "--block-size", "32"]
        server._command += ["--num-gpu-blocks-override", "20", "--middleware", "tests.engines.soak_probe.Probe"]
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        server._environment |= {"PYTHONPATH": os.pathsep.join(paths), "OTEL_LLM_SAMPLED_PER_SECOND": "inf"}
        server.start()
        try:
            asyncio.run(server.ready())
            began = time.monotonic()
            fates, looks = asyncio.run(load(server.url, count, seed))
            took = time.monotonic() - began
            spans, total = requests_of(receiver, count), counted(receiver, count)
        finally:
            server.stop(grace=10)
    outcomes = Counter(span.attributes["otel_llm.outcome"] for span in spans.values())
    with capsys.disabled():
        print(  # noqa: T201 - the figures of `make test-soak`
            f"\n{count} requests at {CONCURRENCY} in {took:.0f} s: {dict(outcomes)}, as callers saw them "
            f"{dict(Counter(fate for _, fate in fates.values()))}; preempted "
            f"{sum(bool(span.attributes.get('otel_llm.preemptions')) for span in spans.values())}; "
            f"RSS MB after each {ROUND}: {[round(look['rss'] / 1e6) for look in looks]}"
        )
    assert Counter(fates[trace] for trace in fates.keys() - spans.keys()) == {}, "requests without a span"
    assert len(fates) == len(spans) == total == sum(outcomes.values()) == count
    wrong = {trace: (fate, spans[trace].attributes["otel_llm.outcome"]) for trace, fate in fates.items()
             if spans[trace].attributes["otel_llm.outcome"] not in ALLOWED[fate[1]]}  # fmt: skip
    assert not wrong
    assert {"ok", "abort", "reject"} <= outcomes.keys()
    assert [look["left"] for look in looks] == [{}] * len(looks)
    if len(looks) >= 12:
        after_warm_up, at_the_end = (
            statistics.median(look["rss"] for look in part) for part in (looks[4:9], looks[-5:])
        )
        assert at_the_end < after_warm_up * 1.02
