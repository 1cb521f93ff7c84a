"""The server edge, with delays of known size in every phase and a clock of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from live import Recorded, phases, serving

import otel_llm
from otel_llm import instrumentation, outlet

TICK = 10.0
"""Milliseconds: a kernel tick is 4 ms at 250 Hz, 10 ms at 100 Hz."""

NEAR = 10.0
"""Milliseconds that may lie between two neighbouring readings of a clock on a loaded machine."""

NOISE = 40.0
"""Milliseconds that a loaded machine may add to a delay; every injected one is far longer."""

EARLY = 2.0
"""Milliseconds: a loop's clock is coarse, and a sleep may end before its time."""

TOKENS = 5
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def read(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def start(send: Send, status: int = 200, kind: bytes = b"text/event-stream") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"


TRUTH: list[int] = []
"""When each step of the application was over, by its own clock reading, ns."""


async def stepwise(scope: Any, receive: Any, send: Send) -> None:
    """Sleeps 120 ms before the engine, 100 in the queue, 80 in prefill, 4 x 50 in decode, 150 after it."""
    await read(receive)
    TRUTH[:] = [time.monotonic_ns()]
    await asyncio.sleep(0.12)
    await start(send)
    TRUTH.append(time.monotonic_ns())
    with otel_llm.request(model="m", engine="test") as request:
        await asyncio.sleep(0.1)
        TRUTH.append(time.monotonic_ns())
        request.scheduled()
        await asyncio.sleep(0.08)
        TRUTH.append(time.monotonic_ns())
        for token in range(TOKENS):
            if token:
                await asyncio.sleep(0.05)
            request.tokens(1)
            last = time.monotonic_ns()
            await send({"type": "http.response.body", "body": event(str(token)), "more_body": True})
    TRUTH.append(last)
    await asyncio.sleep(0.15)
    TRUTH.append(time.monotonic_ns())
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def quick(scope: Any, receive: Any, send: Send) -> None:
    body = await read(receive)
    with otel_llm.request(model="m", engine="test") as request:
        request.scheduled()
        request.tokens(len(body))
        request.tokens(1)
    await start(send, kind=b"application/json")
    await send({"type": "http.response.body", "body": b"{}"})


def post(port: int, body: bytes = b"{}", headers: str = "", path: str = "/generate") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head(body, headers, path) + body)
    return connection


def head(body: bytes, headers: str = "", path: str = "/generate") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: h\r\n{headers}content-length: {len(body)}\r\n\r\n".encode()


def answer(connection: socket.socket) -> bytes:
    """One whole answer; the connection stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    top, _, rest = data.partition(b"\r\n\r\n")
    if b"chunked" in top:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += connection.recv(65536)
    else:
        length = int(top.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(rest) < length:
            rest += connection.recv(65536)
    return top + b"\r\n\r\n" + rest


PROTOCOLS, LOOPS = ("httptools", "h11", "zttp"), ("asyncio", "uvloop")
KINDS = [{"http": http, "loop": loop} for http, loop in itertools.product(PROTOCOLS, LOOPS)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind['http']}-{kind['loop']}")
def kind(request: pytest.FixtureRequest, quiet: None) -> dict[str, str]:
    pytest.importorskip(request.param["http"])
    if request.param["loop"] == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


def test_every_phase_has_its_delay(recorded: Recorded, kind: dict[str, str]) -> None:
    with serving(stepwise, **kind) as port:
        began = time.monotonic_ns()
        connection = post(port)
        received = answer(connection)
        ended = time.monotonic_ns()
        connection.close()
    timeline = recorded.one()
    found = phases(timeline)
    assert received.count(b"data: ") == TOKENS + 1
    names = ("preprocess", "queue", "prefill", "decode", "postprocess")
    for name, (begin, end) in zip(names, itertools.pairwise(TRUTH), strict=True):
        assert found.pop(name) == pytest.approx((end - begin) / 1e6, abs=NEAR), name
    assert found.pop("accept", 0) + found.pop("network", 0) < NOISE
    assert not found
    assert began - TICK * 1e6 <= timeline.start
    assert (timeline.ended - ended) / 1e6 < NOISE  # the client may have it before send() returns
    assert timeline.duration / 1e6 == pytest.approx((ended - began) / 1e6, abs=NOISE)
    assert (timeline.engine, timeline.model, timeline.outcome, timeline.output_tokens) == ("test", "m", "ok", TOKENS)


def test_telemetry_is_built_before_the_first_request(recorded: Recorded) -> None:
    assert instrumentation._live.peek() is None
    with serving(quick):
        limit = time.monotonic() + 10
        while instrumentation._live.peek() is None and time.monotonic() < limit:
            time.sleep(0.01)
        assert instrumentation._live.peek() is not None
    assert not recorded.timelines


def test_an_upload_is_network(recorded: Recorded, kind: dict[str, str]) -> None:
    body = b"x" * 300_000
    with serving(quick, **kind) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head(body))
        began = time.monotonic()
        for piece in range(0, len(body), 100_000):
            time.sleep(0.1)
            connection.sendall(body[piece : piece + 100_000])
        injected = (time.monotonic() - began) * 1e3
        answer(connection)
        connection.close()
    timeline = recorded.one()
    found = phases(timeline)
    assert found["network"] + found.get("accept", 0) == pytest.approx(injected, abs=2 * TICK)
    assert found.get("accept", 0) < NOISE
    assert timeline.attributes["otel_llm.network.method"] == "server_tcp"
    assert timeline.attributes["otel_llm.network.duration"] * 1e3 == pytest.approx(found["network"], abs=5)


def test_a_blocked_loop_is_accept(recorded: Recorded, kind: dict[str, str]) -> None:
    blocked, release = threading.Event(), threading.Event()

    async def blocking(scope: Any, receive: Any, send: Send) -> None:
        if scope["path"] == "/block":
            blocked.set()
            release.wait(10)
            await start(send, kind=b"text/plain")
            await send({"type": "http.response.body", "body": b""})
        else:
            await quick(scope, receive, send)

    with serving(blocking, **kind) as port:
        warm = post(port)  # accepted before the loop is blocked
        answer(warm)
        recorded.one()
        other = post(port, path="/block")
        blocked.wait(10)
        body = b'{"prompt": "p"}'
        before = time.monotonic_ns()
        warm.sendall(head(body) + body)
        after = time.monotonic_ns()
        time.sleep(0.25)
        release.set()
        answer(warm)
        warm.close()
        other.close()
    timeline = recorded.one()
    found = phases(timeline)
    assert timeline.arrived is not None
    assert before - TICK * 1e6 <= timeline.arrived <= after + TICK * 1e6
    assert found["accept"] >= 250 - TICK
    assert found.get("network", 0) <= TICK


def test_a_peer_that_does_not_read_is_told_from_a_slow_engine(recorded: Recorded, kind: dict[str, str]) -> None:
    """After the last token only: before it, waiting for the peer hides behind the decode."""

    async def large(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        await start(send)
        with otel_llm.request(model="m", engine="test") as request:
            request.scheduled()
            request.tokens(1)
        for _ in range(80):
            await send({"type": "http.response.body", "body": b"data: " + b"x" * 100_000 + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with serving(large, **kind) as port:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.connect(("127.0.0.1", port))
        connection.sendall(head(b"{}") + b"{}")
        time.sleep(0.5)
        answer(connection)
        connection.close()
    timeline = recorded.one()
    found = phases(timeline)
    assert found["network"] == pytest.approx(timeline.stall / 1e6, abs=TICK)
    assert timeline.stall / 1e6 > 300
    assert timeline.attributes["otel_llm.network.peer_limited"] > 0.2
    assert timeline.attributes["otel_llm.network.duration"] < 0.1


def test_the_peer_goes_away(recorded: Recorded, kind: dict[str, str]) -> None:
    async def endless(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        await start(send)
        with otel_llm.request(model="m", engine="test") as request:
            request.scheduled()
            leaving = asyncio.ensure_future(receive())
            while not leaving.done():
                await asyncio.sleep(0.02)
                request.tokens(1)
                await send({"type": "http.response.body", "body": event("t"), "more_body": True})

    with serving(endless, **kind) as port:
        connection = post(port)
        while b"choices" not in connection.recv(65536):
            pass
        time.sleep(0.1)
        connection.close()
        timeline = recorded.one()
    assert (timeline.outcome, timeline.error_type) == ("abort", "disconnect")
    assert "decode" in phases(timeline)


def test_an_application_that_fails(recorded: Recorded, kind: dict[str, str]) -> None:
    async def failing(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        with otel_llm.request(model="m", engine="test") as request:
            request.scheduled()
            raise LookupError

    with serving(failing, **kind) as port:
        connection = post(port)
        assert b"500 Internal Server Error" in answer(connection)
        connection.close()
    timeline = recorded.one()
    assert (timeline.outcome, timeline.error_type) == ("error", "LookupError")


def test_several_engine_requests_are_one_request(recorded: Recorded) -> None:
    async def several(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)

        async def one(number: int) -> None:
            with otel_llm.request(model="m", engine="test") as request:
                await asyncio.sleep(0.05 * number)
                request.scheduled()
                request.prompt(10 * number)
                await asyncio.sleep(0.1)
                request.tokens(number)
                await asyncio.sleep(0.1)
                request.tokens(1)

        await asyncio.gather(one(1), one(2), one(3))
        await start(send, kind=b"application/json")
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(several) as port:
        connection = post(port)
        answer(connection)
        connection.close()
    timeline = recorded.one()
    recorded.none()
    assert (timeline.prompt_tokens, timeline.output_tokens, len(timeline.children)) == (60, 9, 3)
    found = phases(timeline)
    assert 50 - EARLY <= found["queue"] < 50 + NOISE  # until the first was scheduled
    assert 200 - EARLY <= found["decode"] < 200 + NOISE  # from the first one's first token to the third one's last
    names = [span.name for span in recorded.spans.get_finished_spans() if span.name.startswith("text_completion")]
    assert names == ["text_completion m"] * 4


def test_beams_without_end_are_bounded(recorded: Recorded) -> None:
    async def beams(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        for _ in range(1000):
            with otel_llm.request(model="m", engine="test") as request:
                request.scheduled()
                request.tokens(1)
        await start(send, kind=b"application/json")
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(beams) as port:
        connection = post(port)
        answer(connection)
        connection.close()
    timeline = recorded.one()
    assert timeline.output_tokens == 1000
    assert len(timeline.children) == 128
    phases(timeline)


def test_what_is_no_request(recorded: Recorded) -> None:
    async def health(scope: Any, receive: Any, send: Send) -> None:
        await start(send, 503 if scope["path"] == "/health" else 200, b"text/plain")
        await send({"type": "http.response.body", "body": b""})

    with serving(health) as port:
        for path in ("/health", "/metrics", "/v1/models"):
            connection = post(port, path=path)
            answer(connection)
            connection.close()
    recorded.none()


def test_a_refusal_on_a_route_that_led_to_an_engine(recorded: Recorded) -> None:
    async def validating(scope: Any, receive: Any, send: Send) -> None:
        if await read(receive) == b"bad":
            await start(send, 422, b"application/json")
            await send({"type": "http.response.body", "body": b"{}"})
        else:
            await quick(scope, empty, send)

    async def empty() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    with serving(validating) as port:
        for body in (b"{}", b"bad"):
            connection = post(port, body, path="/validated")
            answer(connection)
            connection.close()
    recorded.wait(2)
    refused = recorded.timelines[1]
    assert (refused.outcome, refused.error_type, refused.engine) == ("reject", "422", "test")
    assert set(phases(refused)) <= {"accept", "network", "preprocess"}


def test_the_inbound_trace_is_followed_and_baggage_is_not(recorded: Recorded) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serving(quick) as port:
        headers = f"traceparent: 00-{trace}-{parent}-01\r\nbaggage: secret=1\r\n"
        connection = post(port, headers=headers)
        answer(connection)
        connection.close()
    recorded.one()
    root = next(span for span in recorded.spans.get_finished_spans() if span.name == "text_completion m")
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == trace
    assert f"{root.parent.span_id:016x}" == parent
    assert root.kind.name == "SERVER"
    assert not any("secret" in str(key) for key in root.attributes or {})


def test_an_engine_thread_that_ends_after_the_answer(recorded: Recorded) -> None:
    async def threaded(scope: Any, receive: Any, send: Send) -> None:
        import contextvars

        await read(receive)
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            with otel_llm.request(model="m", engine="test") as request:
                request.scheduled()
                request.tokens(2)
                loop.call_soon_threadsafe(ready.set)
                time.sleep(0.2)

        threading.Thread(target=contextvars.copy_context().run, args=(work,)).start()
        await ready.wait()
        await start(send, kind=b"application/json")
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(threaded) as port:
        connection = post(port)
        answer(connection)
        timeline = recorded.one()
        connection.close()
    assert timeline.arrived is not None
    assert timeline.duration < 0.2e9


def test_uninstrument_puts_everything_back() -> None:
    import uvicorn.protocols.http.h11_impl as h11_impl
    import uvicorn.protocols.http.httptools_impl as httptools_impl

    functions = [
        (h11_impl.H11Protocol, "data_received"),
        (h11_impl.RequestResponseCycle, "run_asgi"),
        (httptools_impl.HttpToolsProtocol, "data_received"),
        (httptools_impl.RequestResponseCycle, "run_asgi"),
    ]
    before = [vars(owner)[name] for owner, name in functions]
    otel_llm.instrument()
    try:
        assert all(vars(owner)[name] is not old for (owner, name), old in zip(functions, before, strict=True))
    finally:
        otel_llm.uninstrument()
    assert [vars(owner)[name] for owner, name in functions] == before


@pytest.fixture(autouse=True)
def no_errors_on_the_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.name.startswith(("otel_llm", "asyncio"))]


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
def test_an_engine_request_that_never_comes_is_not_waited_for(recorded: Recorded, when: str) -> None:
    """As when a stream is made and never read: the hook has captured its context and will not emit."""
    left: list[object] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        live = outlet.active
        assert live is not None
        left.append(live.capture())
        with otel_llm.request(model="m", engine="test") as request:
            request.tokens(2)
        if when == "before the answer":
            left.clear()
        await start(send, kind=b"application/json")
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(app) as port:
        connection = post(port)
        answer(connection)
        if when == "after the answer":
            time.sleep(0.3)
            assert recorded.timelines == []
            left.clear()
        timeline = recorded.one(seconds=2)
        connection.close()
    assert (timeline.model, timeline.output_tokens) == ("m", 2)
