"""The real vLLM OpenAI server, instrumented by its environment alone: no flag, no line of code."""

from __future__ import annotations

import itertools
import json
import socket
import time
from typing import Any

import pytest

from otel_llm.demo.server import MODEL
from otel_llm.report.receiver import Receiver


class Spans:
    """What the server exported about the next requests."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._seen = len(receiver.spans())

    def requests(self, count: int = 1, quiet: float = 1.0) -> list[Any]:
        """The spans of this many requests, and of no more."""
        limit = time.monotonic() + 15
        while len(self._roots()) < count and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(quiet)
        assert len(self._roots()) == count
        return self._roots()

    def below(self, parent: Any) -> list[Any]:
        return [span for span in self._receiver.spans(self._seen) if span.parent_id == parent.span_id]

    def _roots(self) -> list[Any]:
        spans = self._receiver.spans(self._seen)
        ids = {span.span_id for span in spans}
        return [span for span in spans if span.parent_id not in ids]


def ask(port: int, path: str, body: dict[str, Any] | bytes, headers: str = "") -> tuple[int, bytes]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(content)}\r\n\r\n".encode()
        + content
    )
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.close()
    return int(data.split(b" ", 2)[1]), data


def names(spans: list[Any]) -> list[str]:
    return [span.name for span in sorted(spans, key=lambda span: span.start)]


PROMPT = {"model": MODEL, "prompt": "A request waits", "max_tokens": 16, "ignore_eos": True}
ALL = ["preprocess", "queue", "prefill", "decode", "postprocess"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_one_request_has_every_phase(vllm: tuple[int, Receiver], stream: bool) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    began = time.time_ns()
    status, _ = ask(port, "/v1/completions", {**PROMPT, "stream": stream}, f"traceparent: 00-{trace}-{parent}-01\r\n")
    ended = time.time_ns()
    assert status == 200
    (request,) = spans.requests()
    assert (request.trace_id, request.parent_id) == (trace, parent)
    phases = sorted(spans.below(request), key=lambda span: span.start)
    assert [name for name in names(phases) if name not in ("accept", "network")] == ALL
    assert phases[0].start == request.start
    assert phases[-1].end == request.end
    assert all(one.end == following.start for one, following in itertools.pairwise(phases))
    assert began - 10e6 <= request.start
    assert request.end <= ended + 20e6
    assert request.attributes["gen_ai.usage.output_tokens"] == 16
    assert request.attributes["otel_llm.network.method"] == "server_tcp"


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "wait"}], "max_tokens": 8}, "completion_tokens"),
        ("responses", {"input": "A request waits", "max_output_tokens": 8}, "output_tokens"),
    ],
    ids=["chat", "responses"],
)
def test_a_chat_is_one(vllm: tuple[int, Receiver], path: str, body: dict[str, Any], tokens: str) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    status, data = ask(port, f"/v1/{path}", {"model": MODEL, **body})
    assert status == 200
    usage = json.loads(data.partition(b"\r\n\r\n")[2])["usage"]
    (request,) = spans.requests()
    assert request.name == f"chat {MODEL}"
    assert request.attributes["gen_ai.usage.output_tokens"] == usage[tokens]
    phases = sorted(spans.below(request), key=lambda span: span.start)
    assert [name for name in names(phases) if name not in ("accept", "network")] == ALL


@pytest.mark.parametrize(
    ("change", "children"),
    [
        ({"n": 2}, 2),
        ({"prompt": ["one prompt", "and another", "and a third"]}, 3),
        ({"use_beam_search": True, "n": 2, "max_tokens": 4}, None),
    ],
    ids=["n", "prompt-list", "beams"],
)
def test_several_engine_requests_are_one_request(
    vllm: tuple[int, Receiver], change: dict[str, Any], children: int | None
) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    status, _ = ask(port, "/v1/completions", {**PROMPT, **change})
    assert status == 200
    (request,) = spans.requests()
    inner = [span for span in spans.below(request) if span.name == request.name]
    assert len(inner) == children if children else len(inner) > 2
    assert all(request.start <= span.start and span.end <= request.end for span in inner)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", {"model": MODEL}, 400),
        ("/v1/completions", {**PROMPT, "model": "nobody"}, 404),
        ("/v1/chat/completions", {"model": MODEL, "messages": "none"}, 400),
        ("/v1/completions", {**PROMPT, "prompt": "word " * 3000}, 400),
    ],
    ids=["broken", "no-prompt", "no-such-model", "no-messages", "too-long"],
)
def test_a_refusal_is_a_request(
    vllm: tuple[int, Receiver], path: str, body: dict[str, Any] | bytes, status: int
) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    assert ask(port, path, body)[0] == status
    (request,) = spans.requests()
    assert request.attributes["otel_llm.outcome"] == "reject"
    assert request.attributes["error.type"]


def test_what_is_no_request(vllm: tuple[int, Receiver]) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    for path in ("/health", "/metrics", "/v1/models", "/tokenize"):
        ask(port, path, {"model": MODEL, "prompt": "p"})
    spans.requests(0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_client_that_goes_away(vllm: tuple[int, Receiver], stream: bool) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    content = json.dumps({**PROMPT, "max_tokens": 1900, "stream": stream}).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n".encode()
        + content
    )
    time.sleep(0.5)
    connection.close()
    (request,) = spans.requests()
    assert request.attributes["otel_llm.outcome"] == "abort"
    assert "decode" in names(spans.below(request))
