"""No client decides how much is sampled, and a full queue says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_llm.config import Settings
from otel_llm.report.receiver import Receiver
from tests.faults.collectors import collector
from tests.faults.programs import counted, finish, roots, start

REQUESTS, CAP = 2000, 25

SERVED = """
import asyncio, itertools, json
from otel_llm.servers.asgi import EdgeMiddleware
async def app(scope, receive, send):
    one()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
async def ask(*headers):
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): pass
    await EdgeMiddleware(app)(scope, receive, send)
"""
FORGED = {
    "sampled": "f'00-{number:032x}-{number:016x}-01'",
    "one trace": "f'00-{7:032x}-{number:016x}-01'",
    "chosen trace ids": "f'00-{number << 64:032x}-{number:016x}-01'",  # whose low half passes any ratio
}


@pytest.mark.parametrize(
    ("header", "sampler", "ratio"),
    [
        ("sampled", "parentbased_traceidratio", "0.0"),
        ("one trace", "parentbased_traceidratio", "0.0"),
        ("chosen trace ids", "traceidratio", "0.01"),
        pytest.param("sampled", "traceidratio", "0.5", marks=pytest.mark.slow),
        pytest.param("sampled", "always_on", "", marks=pytest.mark.slow),
    ],
)
def test_a_client_cannot_lift_the_cap(header: str, sampler: str, ratio: str, receiver: Receiver) -> None:
    """
    Callers mark everything as sampled, or choose ids that are; the metrics count every request all the same.

    Seen to fail without CappedSampler: all 2000 requests had spans.
    """
    program = f"""
    otel_llm.instrument()
    began = time.monotonic()
    async def main():
        for number in range(1, {REQUESTS + 1}):
            await ask((b"traceparent", {FORGED[header]}.encode()))
    asyncio.run(main())
    capped = otel_llm.status().capped["spans"]
    took = time.monotonic() - began  # now all are recorded
    print(json.dumps([took, capped]))
    """
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": ratio}
    variables["OTEL_LLM_SAMPLED_PER_SECOND"] = str(CAP)
    source = SERVED + "\n".join(line[4:] for line in program.splitlines())
    output, errors = finish(start(source, receiver.url, **variables))
    took, capped = json.loads(output)
    requests = roots(receiver)
    assert 0 < len(requests) <= CAP * (1 + took) + 1
    if ratio != "0.5":  # there the sampler takes about half of them
        assert len(requests) + capped == REQUESTS
    assert counted(receiver) == [REQUESTS]
    assert sum(point.total for point in receiver.points("otel_llm.telemetry.capped")) == capped > 0
    ids = {span.span_id for span in requests}
    assert all(span in requests or span.parent_id in ids for span in receiver.spans()), "no half of a request is left"
    (line,) = errors.splitlines()
    assert line == f"otel_llm: more than {CAP} sampled requests per second: the rest has no spans"


def test_a_public_endpoint_lets_no_client_choose_the_trace(receiver: Receiver) -> None:
    """A thousand requests that claim one trace are a thousand traces. Seen to fail without the variable: one trace."""
    program = """
    otel_llm.instrument()
    async def main():
        for number in range(1, 201):
            await ask((b"traceparent", f"00-{7:032x}-{number:016x}-01".encode()))
    asyncio.run(main())
    """
    source = SERVED + "\n".join(line[4:] for line in program.splitlines())
    _, errors = finish(start(source, receiver.url, OTEL_LLM_PUBLIC_ENDPOINT="1"))
    assert errors == ""
    assert len({span.trace_id for span in roots(receiver)}) == len(roots(receiver)) == 200


def test_a_caller_that_is_not_sampled_is_not(receiver: Receiver) -> None:
    program = """
    otel_llm.instrument()
    asyncio.run(ask((b"traceparent", b"00-00000000000000000000000000000007-0000000000000001-00")))
    """
    source = SERVED + "\n".join(line[4:] for line in program.splitlines())
    assert finish(start(source, receiver.url)) == ("", "")
    assert roots(receiver) == []
    assert counted(receiver) == [1]


@pytest.mark.parametrize("cap", ["-1", "nan", "many"])
def test_a_cap_that_is_none_is_refused(cap: str) -> None:
    with pytest.raises(ValueError, match=r"OTEL_LLM_SAMPLED_PER_SECOND|could not convert"):
        Settings.load(environment={"OTEL_LLM_SAMPLED_PER_SECOND": cap})


def test_a_full_queue_loses_spans_and_says_so(tmp_path: Path) -> None:
    """
    More requests than a slow collector takes: the queue keeps its size, and each span is exported or counted as lost.

    Seen to fail without SpanQueue.overflow: the spans that found it full were counted nowhere, and without its line.
    """
    program = """
    import json
    spans = 0
    def count(timeline):
        global spans
        spans += 1 + len(timeline.phases())
    otel_llm.instrument()
    otel_llm.add_sink(count)
    for _ in range(3000): one()
    while True:
        status = otel_llm.status()
        if status.exported["spans"] + status.dropped["spans"] >= spans: break
        time.sleep(0.05)
    print(json.dumps([spans, status.exported["spans"], status.dropped["spans"]]))
    """
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with collector("http/protobuf", "slow", tmp_path) as to:
        output, errors = finish(start(program, to.url, **small), 120)
        spans, exported, dropped = json.loads(output)
        assert exported + dropped == spans
        assert exported == len(to.receiver.spans())
        assert dropped > spans / 2
        assert counted(to.receiver) == [3000]
        (line,) = errors.splitlines()
        assert "queue is full" in line
