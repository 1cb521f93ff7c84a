"""``transformers serve`` itself, under concurrent requests: who waited for whom, and whose trace it was."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

serve = pytest.importorskip("transformers.cli.serve", reason="only from 5.5 on")
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402  # only where the module above exists
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind  # noqa: E402
from transformers import Qwen2ForCausalLM  # noqa: E402

import otel_llm  # noqa: E402
from otel_llm.testing import assert_adds_up, recording  # noqa: E402
from otel_llm.timeline import Timeline  # noqa: E402

COUNT = 4
STEP = 0.15
"""Seconds that each pass of the model takes at least."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Begin and end of each pass of the model, monotonic nanoseconds."""
    seen: list[tuple[int, int]] = []
    original = Qwen2ForCausalLM.forward

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.monotonic_ns()
        time.sleep(STEP)
        output = original(self, *args, **kwargs)
        seen.append((begin, time.monotonic_ns()))
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", forward)
    return seen


@contextlib.contextmanager
def serving(model: Path, **options: Any) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve.Serve(
        force_model=str(model), device="cpu", dtype="float32", host="127.0.0.1", port=port, non_blocking=True, **options
    )
    try:
        limit = time.monotonic() + 60
        while not server.server.started and time.monotonic() < limit:
            time.sleep(0.05)
        yield port
    finally:
        server.kill_server()


def ask(port: int, model: Path, number: int, stream: bool) -> tuple[int, int]:
    """One request of trace ``number``; when it was sent and when its answer was complete."""
    body = {
        "model": str(model),
        "messages": [{"role": "user", "content": "wait " * number}],
        "max_tokens": 4,
        "stream": stream,
        "generation_config": json.dumps({"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}),
    }
    headers = {
        "Content-Type": "application/json",
        "x-request-id": f"asked-{number}",
        "traceparent": f"00-{number:032x}-{number:016x}-01",
    }
    call = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    sent = time.monotonic_ns()
    with urllib.request.urlopen(call, timeout=120) as answer:
        answer.read()
    return sent, time.monotonic_ns()


def wait(seen: list[Timeline], count: int) -> None:
    """A request is reported shortly after its answer has arrived."""
    limit = time.monotonic() + 10
    while len(seen) < count and time.monotonic() < limit:
        time.sleep(0.01)
    assert len(seen) == count


class Served:
    """What came of concurrent requests, half of them streamed."""

    def __init__(self, model: Path, passes: list[tuple[int, int]], **options: Any) -> None:
        spans, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        otel_llm.instrument(tracer_provider=provider, meter_provider=MeterProvider(shutdown_on_exit=False))
        with serving(model, **options) as port, recording() as seen:
            for number, stream in ((99, False), (98, True)):
                ask(port, model, number, stream)
            wait(seen, 2)
            seen.clear()
            passes.clear()
            with ThreadPoolExecutor(COUNT) as callers:
                self.asked = list(callers.map(lambda n: ask(port, model, n, n % 2 == 0), range(1, COUNT + 1)))
            wait(seen, COUNT)
            self.requests = sorted(seen, key=lambda timeline: timeline.scheduled or 0)
        self.traces = sorted(
            span.context.trace_id
            for span in spans.get_finished_spans()
            if span.kind is SpanKind.SERVER and span.context.trace_id <= COUNT
        )


@pytest.mark.usefixtures("instrumented")
def test_requests_wait_for_the_one_thread(tiny_model: Path, passes: list[tuple[int, int]]) -> None:
    served = Served(tiny_model, passes)
    assert served.traces == [1, 2, 3, 4], "each request is one span in the trace of its caller"
    assert len(served.requests) == COUNT
    done = 0
    for timeline in served.requests:
        assert_adds_up(timeline)
        assert timeline.output_tokens
        names = [phase.name for phase in timeline.phases()]
        assert [name for name in names if name not in ("accept", "network")] == [
            *("preprocess", "queue", "prefill", "decode", "postprocess")
        ]
        # Between the end of the request before it and the beginning of its own first pass.
        earlier = passes[done - 1][1] if done else served.asked[0][0]
        assert timeline.scheduled is not None
        assert earlier <= timeline.scheduled <= passes[done][0]
        assert timeline.first_token is not None
        assert passes[done][1] <= timeline.first_token
        done += timeline.output_tokens
        assert timeline.last_token is not None
        assert passes[done - 1][1] <= timeline.last_token
    assert done == len(passes)
    waits = [sum(p.duration for p in timeline.phases() if p.name == "queue") / 1e9 for timeline in served.requests]
    assert max(waits) > 4 * STEP, "at least for all of another request"


@pytest.mark.usefixtures("instrumented")
def test_requests_share_a_batch(tiny_model: Path, passes: list[tuple[int, int]]) -> None:
    served = Served(
        tiny_model,
        passes,
        continuous_batching=True,
        cb_num_blocks=64,
        cb_block_size=16,
        cb_max_batch_tokens=256,
        cb_use_cuda_graph=False,
    )
    assert served.traces == [1, 2, 3, 4]
    assert sorted(str(timeline.request_id) for timeline in served.requests) == [f"asked-{n}" for n in (1, 2, 3, 4)]
    for timeline in served.requests:
        assert_adds_up(timeline)
        assert timeline.output_tokens
        assert timeline.submitted is not None
        assert timeline.scheduled is not None
        assert timeline.first_token is not None
        begin = next(begin for begin, _ in passes if begin >= timeline.scheduled)
        end = max(end for _, end in passes if end <= timeline.first_token)
        assert timeline.scheduled <= begin < end <= timeline.first_token
    assert len(passes) < sum(timeline.output_tokens or 0 for timeline in served.requests), "they were batched"
