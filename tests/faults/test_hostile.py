"""Input made to hurt: nothing is raised, no batch is lost, series and memory stay bounded, nothing private leaves."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from otel_llm.client_timeline import ClientTimeline
from otel_llm.faults import QUIET_SECONDS
from otel_llm.report.receiver import Receiver
from otel_llm.telemetry.recorder import Recorder
from tests.faults.collectors import PROTOCOLS, collector
from tests.faults.programs import counted, finish, nobody, roots, start

POISON = """
import dataclasses, decimal, fractions, json, math
from otel_llm.instrumentation import emit
from otel_llm.timeline import Timeline
import numpy
class Bad:
    def __str__(self): raise RuntimeError("str")
    __repr__ = __format__ = __bytes__ = __float__ = __index__ = __len__ = __iter__ = __hash__ = __str__
class BadText(str):
    def __str__(self): raise RuntimeError("str")
    __getitem__ = isascii = encode = __str__
loop = []
loop.append(loop)
nested = {}
for _ in range(5000): nested = {"a": nested}
POISON = [
    "chat \\ud800", None, 5, b"x\\xff", 10**30, 10**400, math.nan, math.inf, -1.0, -5, 1.7e18, 1 << 65, object(), Bad(),
    BadText("x"), loop, nested, [1, 2], {"a": [1, {"b": 2}]}, [("a", 1)], True, "0.5", decimal.Decimal("0.1"),
    fractions.Fraction(1, 3), "p" * 50_000_000, "a\\x00\\n\\x1b[31m", numpy.float32(.3), numpy.int64(3), {5: "x"},
    {"\\ud800": "x"}, {f"k{i}": i for i in range(1000)},
]
def timeline(**fields):
    now = time.monotonic_ns()
    marks = {"received": now, "submitted": now + 1, "scheduled": now + 2, "first_token": now + 3, "last_token": now + 4}
    about = {"engine": "e", "operation": "chat", "model": "m", "wall_offset": time.time_ns() - now}
    return Timeline(**{**marks, **about, "ended": now + 5, "output_tokens": 2, **fields})
"""
FIELDS = ("engine", "operation", "model", "request_id", "error_type", "finish_reasons", "prompt_tokens", "attributes")


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], pytest.param(PROTOCOLS[1], marks=pytest.mark.slow)])
def test_no_value_raises_or_takes_other_spans_along(protocol: str, tmp_path: Path) -> None:
    """
    Every poison value in every field that comes from outside, each among good requests of the same batch.

    Seen to fail without sanitize.text (the encoder refused the batch: 0 of its requests arrived).
    """
    program = (
        POISON
        + f"""
otel_llm.instrument()
requests = 0
for field in {FIELDS}:
    for value in POISON:
        if field == "finish_reasons": value = (value,)
        if field == "attributes": value = {{"otel_llm.engine.queue_time": value}}
        emit(timeline(**{{field: value}}))
        emit(timeline(model="good"))
        requests += 1
for value in POISON:
    one(value)
    requests += 1
print(json.dumps([requests, dict(otel_llm.status().errors)]))
"""
    )
    with collector(protocol, "healthy", tmp_path) as to:
        output, errors = finish(start(program, to.url, protocol), 120)
        requests, swallowed = json.loads(output)
        good = len(FIELDS) * 31
        names = [span.name for span in roots(to.receiver)]
        assert names.count("chat good") == good, errors
        # A value that the account itself cannot be made of costs its own request, counted as an error.
        assert len(names) + sum(swallowed.values()) >= requests + good
        assert all(name.isprintable() and len(name) < 600 for name in names)
        assert all(line.isprintable() for line in errors.splitlines())


@pytest.mark.parametrize("names", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_model_names_without_end(names: int, receiver: Receiver) -> None:
    """
    A name per request: series and memory stay bounded, the model that came first stays its own series.

    Seen to fail without MODEL_LIMIT: a series per name, up to the limit of the instrument, and 100 MB.
    """
    program = f"""
    import json, resource
    def rss(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    otel_llm.instrument()
    for _ in range(500): one("served")
    before = rss()
    for number in range({names}): one(f"model-{{number}}")
    print(json.dumps(rss() - before))
    """
    output, errors = finish(start(program, receiver.url, OTEL_TRACES_SAMPLER="always_off"), 300)
    assert errors == ""
    assert json.loads(output) < 10 * 2**20
    points = receiver.points("gen_ai.server.request.duration")
    by_model = {str(point.attributes["gen_ai.request.model"]): point.count for point in points}
    assert len(by_model) <= 101
    assert by_model["served"] == 500
    assert by_model["_other"] == names - 99
    assert sum(counted(receiver)) == 500 + names


def test_engine_names_without_end() -> None:
    """
    A server that calls its engine by another name in each answer: the series of its clients stay bounded.

    Seen to fail with each name as a label.
    """
    reader = InMemoryMetricReader()
    recorder = Recorder(None, MeterProvider([reader]))
    for number in range(3000):
        attempt = ClientTimeline(operation="chat", provider=f"e{number}", model="m", started=0, ended=5, wall_offset=0)
        recorder.clients.begin("chat", "m", 0).finish(attempt)
    data = reader.get_metrics_data()
    assert data is not None
    points = [
        point
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        if metric.name == "gen_ai.client.operation.duration" and isinstance(point, HistogramDataPoint)
    ]
    counts = {(point.attributes or {}).get("gen_ai.provider.name"): point.count for point in points}
    assert len(counts) == 101
    assert (counts["e0"], counts["_other"]) == (1, 2900)


SERVER = """
import asyncio, gc, json, uvicorn
from otel_llm.edge import ServerEdge
from otel_llm.servers._connection import Connection
async def app(scope, receive, send):
    if scope["type"] != "http": return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect": return
        body += message.get("body", b"")
        if not message.get("more_body"): break
    asked = json.loads(body or b"{}")
    if asked.get("count"):
        gc.collect()
        asked["prompt"] = sum(isinstance(thing, (ServerEdge, Connection)) for thing in gc.get_objects())
    with otel_llm.request(model="m") as r:
        r.tokens(1)
        if asked.get("fail"): raise ValueError("cannot do " + asked["prompt"])
        r.tokens(1)
    kind = b"text/event-stream" if asked.get("events") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    for event in asked.get("events", ()):
        await send({"type": "http.response.body", "body": event.encode() * asked.get("times", 1), "more_body": True})
    await send({"type": "http.response.body", "body": json.dumps(asked.get("prompt")).encode()})
"""


def serve(program: str, endpoint: str, protocol: str = "http/protobuf", **variables: str) -> tuple[Popen[str], int]:
    """A uvicorn server with this application; it prints what ``status()`` says when it is asked to end."""
    port = int(nobody().rpartition(":")[2])
    source = program + f"\notel_llm.instrument()\nuvicorn.run(app, port={port}, log_level='critical')"
    process = start(source, endpoint, protocol, **variables)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process, port
    raise TimeoutError(port)


def exchange(port: int, body: bytes, headers: bytes = b"") -> bytes:
    """One request on a connection of its own; the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
            + headers
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        answer = b""
        while piece := connection.recv(1 << 20):
            answer += piece
    return answer


def end(process: Popen[str]) -> str:
    """Ask the server to end; what it logged."""
    process.terminate()
    _, errors = finish(process)
    return errors


TRACEPARENTS = (
    b"00-" + b"f" * 10_000,
    b"00-00000000000000000000000000000000-0000000000000000-01",
    b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
    b"\xff\xfe\x00",
    b"00-" + "\u0660".encode() * 32 + b"-b7ad6b7169203331-01",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"",
)
CANARY = "canary-b5c1"
AT_ONCE = {("http/protobuf", "unauthorized"), ("grpc", "healthy")}


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], pytest.param(PROTOCOLS[1], marks=pytest.mark.slow)])
def test_nothing_private_leaves(protocol: str, tmp_path: Path) -> None:
    """
    Prompts, errors that quote them, baggage, cookies, URLs, credentials: in no exported byte and no line of a log.

    Everything logs at DEBUG, but for uvicorn itself. Seen to fail with the exception, instead of the lines of its
    traceback, in faults.warn; and with a trace state that the propagator is given as it came, and quotes.
    """
    program = (
        """
import logging
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("otel_llm").setLevel(logging.DEBUG)
from otel_llm import faults
"""
        + SERVER
        + """
def broken(timeline): raise ValueError(secret)
secret = os.environ["SECRET"]
otel_llm.add_sink(broken)
"""
    )
    entries = b",".join(b"key%d=%s-%d" % (number, CANARY.encode(), number) for number in range(180))
    private = (
        b"authorization: Bearer %b\r\ncookie: id=%b\r\nx-otel-llm-timing: %b\r\nuser-agent: %b\r\ntracestate: %b\r\n"
        % ((CANARY.encode(),) * 5)
        + b"baggage: " + entries + b"\r\n"
    )  # fmt: skip
    with collector(protocol, "healthy", tmp_path) as to:
        secrets = {
            "SECRET": CANARY,
            "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={CANARY}",
        }
        process, port = serve(program, to.url, protocol, **secrets)
        for traceparent in TRACEPARENTS:
            answer = exchange(
                port, b'{"prompt": "%b"}' % CANARY.encode(), private + b"traceparent: " + traceparent + b"\r\n"
            )
            assert CANARY.encode() in answer or b"400" in answer[:20]
        failed = exchange(port, b'{"fail": 1, "prompt": "%b"}' % CANARY.encode(), private)
        assert failed.startswith(b"HTTP/1.1 500")
        errors = end(process)
        assert len(roots(to.receiver)) >= 3
        bodies = b"".join(part for part in to.sent if b"x-api-key" not in part.lower())
        assert len(bodies) > 1000
        assert CANARY.encode() not in bodies
        assert CANARY not in errors, next(line for line in errors.splitlines() if CANARY in line)
        assert "error in sink (1 so far): ValueError" in errors
        assert errors.count("error in sink") == 1, f"at most once in {QUIET_SECONDS} s"


@pytest.mark.parametrize(
    ("protocol", "fault"),
    [
        pytest.param(protocol, fault, marks=() if (protocol, fault) in AT_ONCE else [pytest.mark.slow])
        for protocol in PROTOCOLS
        for fault in ("absent", "healthy", "unauthorized")
    ],
)
def test_credentials_are_nowhere(protocol: str, fault: str, tmp_path: Path) -> None:
    """
    Those of the collector are in no log (at DEBUG), no ``repr``, no ``status()``, no resource.

    Seen to fail with the exporters themselves, instead of their names, in ``status()``.
    """
    program = """
    import logging
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("otel_llm").setLevel(logging.DEBUG)
    otel_llm.instrument()
    one()
    from otel_llm import instrumentation
    live = instrumentation._live.peek()
    print(otel_llm.status(), live, vars(live.pipeline), instrumentation._active.settings, flush=True)
    """
    with collector(protocol, fault, tmp_path) as to:
        address = to.url.replace("://", f"://user:{CANARY}@") if protocol == "http/protobuf" else to.url
        process = start(program, address, protocol, OTEL_EXPORTER_OTLP_HEADERS=f"x-api-key={CANARY}")
        output, errors = finish(process)
        assert process.returncode == 0, errors
        assert "exporters={'traces': ('otlp',)" in output
        assert CANARY not in output
        assert CANARY not in errors, next(line for line in errors.splitlines() if CANARY in line)
        bodies = [part for part in to.sent if b"x-api-key" not in part.lower()]
        assert bodies or fault == "absent"
        assert CANARY.encode() not in b"".join(bodies)


GIANT: dict[str, dict[str, Any]] = {
    "one event of 50 MB": {"events": ["data: " + '{"choices": [' + "[" * 1000], "times": 50_000},
    "a million brackets": {"events": ["data: " + "[" * 1_000_000 + "\n\n"] * 20},
    "comments without end": {"events": [": keep-alive\n\n"] * 20_000},
    "no line end": {"events": ["data: x"] * 5_000},
    "no UTF-8": {"events": ["data: \ud800\n\n".encode("utf-8", "surrogatepass").decode("latin-1")] * 100},
}


def test_giant_event_streams(receiver: Receiver) -> None:
    """
    Every byte arrives, and none of it is kept.

    Seen to fail with messages kept in a list: it grew by what was sent.
    """
    process, port = serve(SERVER, receiver.url)
    sizes = []
    for _ in range(3):
        for wanted in GIANT.values():
            answer = exchange(port, json.dumps(wanted).encode())
            for mark in (b"[", b"data", b"keep"):
                expected = sum(event.encode().count(mark) for event in wanted["events"]) * wanted.get("times", 1)
                assert answer.count(mark) == expected
        sizes.append(rss(process))
    exchange(port, b'{"prompt": "small"}')
    assert end(process) == ""
    assert len(roots(receiver)) == 3 * len(GIANT) + 1
    assert sizes[2] - sizes[0] < 48 * 2**20, sizes  # two rounds are 150 MB


def rss(process: Popen[str]) -> int:
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_slow_loris_clients_leave_nothing_behind(receiver: Receiver) -> None:
    """
    Clients that send a byte at a time, or stop: others are served, and no record of a request outlives its connection.

    Seen to fail with an edge that keeps itself in a list: 50 and more were left.
    """
    process, port = serve(SERVER, receiver.url, OTEL_BSP_SCHEDULE_DELAY="100")
    head = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\nx: "
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
    for number, connection in enumerate(slow):
        connection.sendall((b"P", head, head + b"y\r\n\r\n{")[number % 3])
    for _ in range(5):
        for number, connection in enumerate(slow):
            connection.sendall((b"O", b"x", b" ")[number % 3] if number % 3 else b"")
        assert b'"served"' in exchange(port, b'{"prompt": "served"}')
    for connection in slow:
        connection.close()
    deadline = time.monotonic() + 20
    while (left := int(exchange(port, b'{"count": 1}').split(b"\r\n")[-4])) > 2:  # those of this request
        assert time.monotonic() < deadline, left
        time.sleep(1)  # until the one that asked has been recorded and sent
    assert end(process) == ""
    assert {span.attributes["otel_llm.outcome"] for span in roots(receiver)} == {"ok"}
