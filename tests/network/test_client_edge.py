"""The client edge against servers in this process: paired, foreign, failing, slow."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import callers
import httpx
import pytest
from link import link
from live import Recorded, phases, serving
from test_server_edge import TICK, Send, answer, event, head, post, quick, read, start, stepwise

import otel_llm
from otel_llm import pairing

BODY = {"model": "m", "prompt": "p", "ignore_eos": True}
ASK = "x-otel-llm-timing: 1\r\n"


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator allows times to be told; asked for before ``recorded``."""
    monkeypatch.setenv("OTEL_LLM_TIMING", "1")


class Foreign(http.server.BaseHTTPRequestHandler):
    """A server that knows nothing of us; the path says what it does."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, str]]
    written: ClassVar[list[int]] = []
    """When the head and each piece of the latest stream left, monotonic nanoseconds."""

    def do_POST(self) -> None:
        self.seen.append(dict(self.headers.items()))
        self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/429"):
            self.send_response(429)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.written[:] = [time.monotonic_ns()]
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may leave
            for piece in self.pieces():
                self.written.append(time.monotonic_ns())
                self.wfile.write(piece)
                time.sleep(0.05)

    def pieces(self) -> list[bytes]:
        role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        text = {"choices": [{"index": 0, "delta": {"content": "t"}}]}
        usage: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": 2}}
        if self.path.startswith("/metrics"):
            usage["metrics"] = {"time_to_first_token_ms": 30.0, "generation_time_ms": 50.0, "queue_time_ms": 20.0}
        found = [b": keep-alive\n\n"]
        found += [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in (role, text, text, usage)]
        if self.path.startswith("/forged"):
            found.append(pairing.to_comment(pairing.ServerTiming({"decode": 3600 * 10**9}, "vllm")))
        return [*found, b"data: [DONE]\n\n"]

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Nothing is printed."""


@pytest.fixture
def foreign() -> Iterator[tuple[str, list[dict[str, str]]]]:
    handler = type("Handler", (Foreign,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_foreign_server_costs_nothing_but_the_pairing(
    recorded: Recorded, foreign: tuple[str, list[dict[str, str]]]
) -> None:
    url, seen = foreign
    with httpx.Client(trust_env=False) as client:
        received = client.post(f"{url}/v1/chat/completions", json=BODY).content
    (attempt,) = recorded.attempts
    assert received.count(b"data: ") == 5
    assert (attempt.outcome, attempt.operation, attempt.provider, attempt.model) == ("ok", "chat", "openai", "m")
    assert attempt.method == "client_tcp"
    assert set(attempt.phases()) == {"connect", "network", "unsplit"}
    assert sum(attempt.phases().values()) == attempt.duration
    assert attempt.answered is not None
    assert attempt.first_token is not None
    head, _, role, text, _, usage = Foreign.written[:6]
    assert head <= attempt.answered < role
    assert head + 0.1e9 < text <= attempt.first_token < usage  # after keep-alive and role, 50 ms each
    assert seen[0]["traceparent"]


def test_what_vllm_itself_says_of_its_engine(recorded: Recorded, foreign: tuple[str, list[dict[str, str]]]) -> None:
    with httpx.Client(trust_env=False) as client:
        client.post(f"{foreign[0]}/metrics/v1/chat/completions", json=BODY)
    (attempt,) = recorded.attempts
    found = attempt.phases()
    assert attempt.method == "client_engine"
    assert {name: found[name] for name in ("queue", "prefill", "decode")} == {
        "queue": 20_000_000,
        "prefill": 30_000_000,
        "decode": 50_000_000,
    }
    assert sum(found.values()) == attempt.duration


def test_a_server_that_says_more_than_fits_is_not_believed(
    recorded: Recorded, foreign: tuple[str, list[dict[str, str]]]
) -> None:
    """Seen to fail with whatever is well-formed believed: an hour of decode, and minus an hour of network."""
    with httpx.Client(trust_env=False) as client:
        client.post(f"{foreign[0]}/forged/v1/chat/completions", json=BODY)
    (attempt,) = recorded.attempts
    assert (attempt.server, attempt.provider, attempt.method) == (None, "openai", "client_tcp")
    assert min(attempt.phases().values()) >= 0


def test_refused_and_retried(recorded: Recorded, foreign: tuple[str, list[dict[str, str]]]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{foreign[0]}/429/v1", api_key="none", max_retries=1)
    with client, pytest.raises(openai.RateLimitError):
        client.completions.create(model="m", prompt="p")
    assert [(attempt.outcome, attempt.error_type, attempt.resend) for attempt in recorded.attempts] == [
        ("reject", "429", 0),
        ("reject", "429", 1),
    ]
    spans = [span for span in recorded.spans.get_finished_spans() if span.kind.name == "CLIENT"]
    assert len({seen["traceparent"] for seen in foreign[1]}) == len(spans) == 2


def test_no_connection(recorded: Recorded) -> None:
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.post("http://127.0.0.1:1/v1/completions", json=BODY)
    (attempt,) = recorded.attempts
    assert (attempt.outcome, attempt.error_type, attempt.sent) == ("error", "ConnectError", None)
    assert sum(attempt.phases().values()) == attempt.duration


@pytest.mark.parametrize("library", ["httpx", "aiohttp", "requests"])
def test_given_up_by_the_caller(recorded: Recorded, foreign: tuple[str, list[dict[str, str]]], library: str) -> None:
    url = f"{foreign[0]}/v1/completions"
    if library == "httpx":
        with httpx.Client(trust_env=False) as client, client.stream("POST", url, json=BODY) as response:
            next(response.iter_raw())
    elif library == "requests":
        import requests

        with requests.post(url, json=BODY, stream=True) as response:
            next(response.iter_content(1))
    else:
        import aiohttp

        async def call() -> None:
            async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as response:
                await response.content.readany()

        asyncio.run(call())
    (attempt,) = recorded.attempts
    assert (attempt.outcome, attempt.error_type) == ("abort", "cancelled")


def test_other_requests_are_left_alone(recorded: Recorded, foreign: tuple[str, list[dict[str, str]]]) -> None:
    url, seen = foreign
    with httpx.Client(trust_env=False) as client:
        client.post(f"{url}/v1/files", json=BODY)
        request = client.build_request("POST", f"{url}/v1/completions", json=BODY)
        client.send(request)
    assert len(recorded.attempts) == 1
    assert not {"traceparent", "x-otel-llm-timing"} & set(seen[0])
    assert not {"traceparent", "x-otel-llm-timing"} & set(request.headers)


def test_the_stream_is_as_lazy_as_before(recorded: Recorded) -> None:
    import openai

    handed = threading.Event()

    async def waiting(scope: Any, receive: Any, send: Send) -> None:
        await read(receive)
        await start(send)
        await send({"type": "http.response.body", "body": event("first"), "more_body": True})
        await asyncio.get_running_loop().run_in_executor(None, handed.wait, 10)
        await send({"type": "http.response.body", "body": event("last") + b"data: [DONE]\n\n"})

    with serving(waiting) as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        stream = client.completions.create(model="m", prompt="p", stream=True)
        assert next(stream).choices[0].text == "first"
        handed.set()
        assert [chunk.choices[0].text for chunk in stream] == ["last"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_times_are_told_to_who_asks(telling: None, recorded: Recorded, stream: bool) -> None:
    with serving(stepwise if stream else quick) as port:
        for headers, told in ((ASK, True), ("", False)):
            connection = post(port, headers=headers, path="/v1/completions")
            assert (b"otel-llm" in answer(connection).lower()) is told
            connection.close()


def test_a_message_without_a_body(telling: None, recorded: Recorded) -> None:
    """ASGI lets an application leave it out."""

    async def pausing(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        await start(send)
        with otel_llm.request(model="m", engine="test") as request:
            request.tokens(1)
            await send({"type": "http.response.body", "body": event("first"), "more_body": True})
            await send({"type": "http.response.body", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    with serving(pausing) as port:
        connection = post(port, headers=ASK, path="/v1/completions")
        assert answer(connection).rstrip().endswith(b"[DONE]\n\n\r\n0")
        connection.close()


def whole_answer(port: int) -> bytes:
    """To a client that asks for times; complete or not."""
    with post(port, headers=ASK + "connection: close\r\n", path="/v1/completions") as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


END = b"data: [DONE]\n\n"
UNTOLD: dict[str, tuple[list[tuple[bytes, bytes]], list[bytes]]] = {
    "an end with a name": ([], [event("t"), b"event: end\n" + END]),
    "an end with a name, in two pieces": ([], [event("t"), b"event: end\n", END]),
    "an end of two lines": ([], [event("t"), b"data: x\n" + END]),
    "what looks like an end, after half a line": ([], [event("t"), b"data: it ends with ", END]),
    "a length that is given": ([(b"content-length", str(len(event("t") + END)).encode())], [event("t"), END]),
    "what is packed": ([(b"content-encoding", b"x")], [event("t"), END]),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_no_times_where_they_would_change_the_answer(telling: None, recorded: Recorded, name: str) -> None:
    """Seen to fail with a comment before any ``data: [DONE]``: another event, or an error for a length exceeded."""
    headers, pieces = UNTOLD[name]

    async def saying(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        with otel_llm.request(model="m", engine="test") as request:
            request.tokens(1)
        given = [(b"content-type", b"text/event-stream"), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": given})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with serving(saying) as port:
        received = whole_answer(port)
    assert b"otel-llm" not in received
    assert [piece for piece in pieces if piece not in received] == []


def test_times_are_told_whatever_form_an_answer_has(telling: None, recorded: Recorded) -> None:
    """
    Headers that can be read once, a body that is a memoryview, a stream that is sent line by line.

    Seen to fail with a look at the headers that leaves none, and with an ``endswith`` that a memoryview has not.
    """

    async def odd(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        with otel_llm.request(model="m", engine="test") as request:
            request.tokens(1)
        headers = iter([(b"content-type", b"text/event-stream"), (b"x-own", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for line in (event("a"), b": \n", b"\n", *(event("b") + END).splitlines(keepends=True)):
            await send({"type": "http.response.body", "body": memoryview(line), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(b"")})

    with serving(odd) as port:
        received = whole_answer(port)
    assert b"x-own: 1" in received
    assert received.count(b": otel-llm {") == 1
    assert received.index(event("b").strip()) < received.index(b": otel-llm {") < received.index(END.strip())


def test_times_are_not_told_unless_the_operator_allows(recorded: Recorded) -> None:
    with serving(stepwise) as port:
        connection = post(port, headers=ASK, path="/v1/completions")
        assert b"otel-llm" not in answer(connection).lower()
        connection.close()


def test_a_foreign_client_sees_the_same_bytes(telling: None, request: pytest.FixtureRequest) -> None:
    def bytes_of(app: Any) -> list[bytes]:
        with serving(app, date_header=False) as port:
            connection = post(port, path="/v1/completions")
            received = answer(connection)
            connection.close()
            return received.split(b"\r\n")

    before = [bytes_of(stepwise), bytes_of(quick)]
    request.getfixturevalue("recorded")
    assert [bytes_of(stepwise), bytes_of(quick)] == before


def test_one_trace_and_one_identity(telling: None, recorded: Recorded) -> None:
    with serving(stepwise) as port, callers.httpx_sync(port) as ask:
        ask(stream=True, **BODY)
    server = recorded.one()
    (attempt,) = recorded.attempts
    assert attempt.method == "paired"
    found, told = phases(server), attempt.phases()
    for name in ("preprocess", "queue", "prefill", "decode"):
        assert told[name] == pytest.approx(found[name] * 1e6, abs=1)
    spans = {span.kind.name: span for span in recorded.spans.get_finished_spans() if span.name == "text_completion m"}
    above, below = spans["CLIENT"], spans["SERVER"]
    assert above.context is not None
    assert below.parent is not None
    assert below.parent.span_id == above.context.span_id
    attributes = above.attributes or {}
    whole = sum(float(value) for key, value in attributes.items() if key.startswith("otel_llm.client."))  # type: ignore[arg-type]
    assert whole == pytest.approx(attempt.duration / 1e9, abs=1e-6)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_that_is_blocked_half_the_time_is_not_the_network(
    telling: None, recorded: Recorded, quiet: None, loop: str
) -> None:
    """50 of every 100 ms: what the server's loop adds is accept and preprocess."""

    async def blocker() -> None:
        while True:
            await asyncio.sleep(0.05)
            time.sleep(0.05)

    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(blocker()))
        await quick(scope, receive, send)

    off = []
    with serving(app, loop=loop) as port, link(port, up=10, down=10) as road, callers.httpx_sync(road.port) as ask:
        ask(stream=False, **BODY)
        road.truth()
        for _ in range(20):
            recorded.attempts.clear()
            ask(stream=False, **BODY)
            truth = road.truth()
            (attempt,) = recorded.attempts
            off.append((attempt.phases()["network"] - truth.took) / 1e6)
            time.sleep(0.013)  # does not keep step with the loop
        servers = recorded.timelines[1:]
        tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
    lags = [phases(timeline).get("accept", 0) + phases(timeline).get("preprocess", 0) for timeline in servers]
    assert max(lags) > 25
    # asyncio writes at once. uvloop writes at the end of a turn of the loop, and
    # now and then the blocked time comes before it: then it looks like network.
    assert statistics.median(map(abs, off)) < TICK + 5, off
    if loop == "asyncio":
        assert max(off) < 2 * TICK + 5, off


def test_nothing_is_left_behind() -> None:
    import aiohttp
    import httpx2
    import requests
    import urllib3.connection

    places = [
        (httpx.HTTPTransport, "handle_request"),
        (httpx.AsyncHTTPTransport, "handle_async_request"),
        (httpx2.HTTPTransport, "handle_request"),
        (aiohttp.ClientSession, "__init__"),
        (requests.adapters.HTTPAdapter, "send"),
        (urllib3.connection.HTTPConnection, "connect"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    otel_llm.instrument()
    with contextlib.ExitStack() as stack:
        stack.callback(otel_llm.uninstrument)
        assert all(vars(owner)[name] is not old for (owner, name), old in zip(places, before, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before


def test_head_of_a_request_in_two_packets(recorded: Recorded) -> None:
    """The request arrives with its first byte."""
    import socket

    with serving(quick) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        content = head(b"{}") + b"{}"
        sent = time.monotonic_ns()
        connection.sendall(content[:30])
        time.sleep(0.15)
        connection.sendall(content[30:])
        answer(connection)
        connection.close()
    timeline = recorded.one()
    assert timeline.arrived is not None
    assert abs(timeline.arrived - sent) < 50e6
    assert phases(timeline)["accept"] > 100
