"""The real vLLM OpenAI server, instrumented by its environment alone: no flag, no line of code."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.demo import tiny_model
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


def test_the_core_in_its_own_process_tells_of_the_wait_for_a_grammar(vllm: tuple[int, Receiver]) -> None:
    port, receiver = vllm
    spans = Spans(receiver)
    choice = {"structured_outputs": {"choice": ["yes", "perhaps"]}, "ignore_eos": False}
    status, data = ask(port, "/v1/completions", {**PROMPT, **choice})
    assert status == 200
    assert json.loads(data.partition(b"\r\n\r\n")[2])["choices"][0]["text"] in ("yes", "perhaps")
    (request,) = spans.requests()
    wait = request.attributes["otel_llm.engine.grammar_wait"]
    assert 0 <= wait <= request.attributes["gen_ai.latency.time_in_queue"]  # it may be ready before the scheduler is


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
def test_a_client_that_goes_away(vllm: tuple[int, Receiver], quiet: None, stream: bool) -> None:
    """Quiet, or a busy server keeps this process from going away before all 1,900 tokens are made."""
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


BENCH = """
import argparse
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
"""``vllm bench serve`` without vLLM's command line, which asks for a distribution named vllm."""


@contextlib.contextmanager
def tapped(port: int) -> Iterator[tuple[int, list[bytearray]]]:
    """A way to the server on which every answer is seen: its port, and what each connection brought."""
    answers: list[bytearray] = []

    def pass_on(source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen += data
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                answers.append(bytearray())
                for ends in ((client, server, bytearray()), (server, client, answers[-1])):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], answers
        listener.shutdown(socket.SHUT_RDWR)


def streams(answers: list[bytearray]) -> list[tuple[str, int]]:
    """The text of every stream that passed, and in how many events it came."""
    texts: dict[str, list[str]] = {}
    for event in itertools.chain.from_iterable(re.findall(rb"data: (\{.*?\})\n\n", answer) for answer in answers):
        told = json.loads(event)
        texts.setdefault(told["id"], []).extend(choice["text"] for choice in told["choices"])
    return [("".join(pieces), len(pieces)) for pieces in texts.values()]


def bench(port: int, model: Path, report: Path, *options: str) -> dict[str, Any]:
    """What ``vllm bench serve`` reports of 24 streams, 4 at a time."""
    arguments = {
        "backend": "openai",
        "base-url": f"http://127.0.0.1:{port}",
        "endpoint": "/v1/completions",
        "model": MODEL,
        "tokenizer": model,
        "dataset-name": "random",
        "seed": 7,
        "num-prompts": 24,
        "random-input-len": 32,
        "random-output-len": 16,
        "max-concurrency": 4,
        "result-dir": report.parent,
        "result-filename": report.name,
    }
    command = [sys.executable, "-c", BENCH, "--ignore-eos", "--save-result", "--save-detailed", *options]
    command += [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    subprocess.run(command, env=environment, check=True, timeout=240, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_a_load_generator_reports_the_same_with_the_server_s_times_in_the_stream(
    vllm: tuple[int, Receiver], tmp_path: Path
) -> None:
    """Counts are equal, of every request; times are not compared, they differ from run to run."""
    model = tiny_model.build(tmp_path / "model")
    found, comments = [], []
    for options in ((), ("--header", "x-otel-llm-timing=1")):
        with tapped(vllm[0]) as (port, answers):
            found.append(bench(port, model, tmp_path / f"report{len(found)}.json", *options))
        comments.append(sum(answer.count(b": otel-llm ") for answer in answers))
        # A gap per event after the first, not per token: vLLM puts tokens together that its client has not taken yet.
        reported = zip(found[-1]["generated_texts"], found[-1]["itls"], strict=True)
        missed = Counter((text, len(gaps) + 1) for text, gaps in reported) - Counter(streams(answers))
        assert not missed, (missed, streams(answers))
    without, asked = found
    assert comments[0] == 0
    assert comments[1] >= 24
    assert without["completed"] == asked["completed"] == 24
    for name in ("failed", "total_input_tokens", "total_output_tokens", "input_lens", "output_lens", "errors"):
        assert without[name] == asked[name], name
