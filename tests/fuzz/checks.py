"""What holds of each reader of the outside, whatever it reads: asked by hypothesis and by the fuzzer alike."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import json
import logging
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace as Object
from typing import Any
from unittest import mock

import requests as http
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from rich.console import Console, RenderableType

from otel_llm import config, dashboards, doctor, edge, outlet, pairing, sanitize, sse
from otel_llm.client_timeline import CLIENT_PHASES, ClientTimeline
from otel_llm.clients import _attempt, _body
from otel_llm.engine_state import EngineStep, Later
from otel_llm.engines import _vllm_told, _vllm_waits
from otel_llm.engines._vllm_sample import Sample
from otel_llm.pipeline import answers
from otel_llm.pipeline.exporters import _sendable
from otel_llm.pipeline.otlp import Encoder
from otel_llm.pipeline.sampling import CappedSampler
from otel_llm.pipeline.spans import Decided, setting
from otel_llm.report import findings, otlp, page, tables
from otel_llm.report import receiver as receiving
from otel_llm.report.levels import Exchange, Level, Summary, summarise
from otel_llm.report.receiver import Receiver
from otel_llm.report.requests import Request, requests
from otel_llm.servers import asgi
from otel_llm.servers._connection import Connection
from otel_llm.span_data import SpanData
from otel_llm.telemetry import client, context
from otel_llm.telemetry.engine import EngineWriter
from otel_llm.telemetry.recorder import Recorder
from otel_llm.telemetry.spans import request_span
from otel_llm.testing import assert_adds_up, swallowed
from otel_llm.timeline import PHASES, UNSPLIT, Timeline
from tests.golden.test_golden import CountingIds
from tests.golden.test_golden import request as usual

SECOND = 1_000_000_000
URL = "http://127.0.0.1:9"
SECRET = "canary-b5c1"


@contextlib.contextmanager
def nothing_swallowed() -> Iterator[None]:
    """An error that production would swallow is raised."""
    with swallowed() as errors:
        yield
    for _, error in errors:
        raise error


# What servers tell their clients.


def sane(timing: pairing.ServerTiming | None) -> bool:
    return timing is None or (
        len(timing.phases) > 0
        and set(timing.phases) <= {*PHASES, UNSPLIT}
        and all(type(value) is int and 0 <= value < 1 << 53 for value in timing.phases.values())
        and all(stamp is None or 0 <= stamp <= timing.total for stamp in (timing.first_body, timing.first_token))
        and 0 <= timing.peer_stall <= timing.phases.get("network", 0)
        and len(timing.engine) <= 64
    )


def comment(events: bytes) -> None:
    assert sane(pairing.from_comment(events))


def header(value: str) -> None:
    assert sane(pairing.from_header(value))


def event(events: bytes) -> None:
    assert sse.bears_token(events) in (True, False)


def events_in_turn(first: bytes, second: bytes) -> None:
    """However a stream is cut into whole events, the first token is found in the same one."""
    together = first + b"\n\n" + second
    if len(together) <= sse.LARGEST:
        assert sse.bears_token(together) is (sse.bears_token(first) or sse.bears_token(second))


class Clock:
    """Stands for ``time``; each look at it takes as long as is said."""

    def __init__(self, steps: Callable[[], int]) -> None:
        self._now, self._steps = 1_000 * SECOND, steps

    def monotonic_ns(self) -> int:
        self._now += self._steps()
        return self._now

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def time_ns(self) -> int:
        return self._now


class Kernel:
    """A socket of which the kernel says this."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def getsockopt(self, _level: int, _option: int, size: int) -> bytes:
        return self._said[:size]


def answer(
    status: int,
    headers: Mapping[str, str],
    chunks: Sequence[bytes],
    *,
    cut: bool,
    at_once: bool,
    clock: Clock,
    said: bytes,
) -> None:
    """An answer, read by an instrumented client chunk by chunk to its end, or to an error."""
    told: list[ClientTimeline] = []
    span = Object(headers={}, finish=told.append)
    out = outlet.Outlet(nowhere, nowhere, lambda *_: span)
    with mock.patch.object(_attempt, "time", clock), mock.patch.object(_body, "time", clock), nothing_swallowed():
        attempt = _attempt.Attempt(out, "chat", "/v1/chat/completions", "h", 80, {}, b"")
        attempt.leaves()
        _attempt.guard(attempt.answered, status, headers, Kernel(said))
        passed = list(_read(chunks, attempt, cut=cut) if at_once else _read_async(chunks, attempt, cut=cut))
    assert passed == list(chunks)
    (timeline,) = told
    assert len(attempt._head) <= _attempt._HEAD + max(map(len, chunks), default=0)
    assert sane(timeline.server)
    phases = timeline.phases()
    assert sum(phases.values()) == timeline.duration
    assert set(phases) <= set(CLIENT_PHASES)
    # What a server says is believed if it fits into the client's time, in which it may have waited for this client.
    longest = timeline.duration + timeline.duration // 1000 + _attempt.SPARE_NS
    assert -longest <= phases.pop("network", 0) <= longest
    assert all(0 <= value <= 2 * longest for value in phases.values())
    exportable(client._span(timeline, timeline.phases()))


def nowhere(*_: object, **__: object) -> None:
    """Takes what is emitted, or asked for."""


def _pieces(chunks: Sequence[bytes], *, cut: bool) -> Iterator[bytes]:
    yield from chunks
    if cut:
        raise ConnectionError


def _read(chunks: Sequence[bytes], attempt: _attempt.Attempt, *, cut: bool) -> Iterator[bytes]:
    with contextlib.suppress(ConnectionError):
        yield from _body.watched(_pieces(chunks, cut=cut), attempt)


def _read_async(chunks: Sequence[bytes], attempt: _attempt.Attempt, *, cut: bool) -> Iterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in _pieces(chunks, cut=cut):
            yield piece

    watched = _body.watched_async(pieces(), attempt)
    with contextlib.suppress(ConnectionError, StopAsyncIteration):
        while True:
            yield at_once(watched.__anext__())


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


# What clients ask of servers.


def request_body(body: bytes | str) -> None:
    model = _attempt._model(body)
    assert model is None or 1 <= len(model) <= 256


def named_model(name: str, prompt: object) -> None:
    """A name, unless it is too long, is found in JSON as anybody writes it."""
    body = {"model": name, "prompt": prompt}
    for text in (json.dumps(body), json.dumps(body, ensure_ascii=False, separators=(",", ":"))):
        for written in (text, text.encode("utf-8", "replace")):
            assert _attempt._model(written) == name


def resend_count(value: str) -> None:
    assert 0 <= _attempt._count(value) < 1000


def trace_headers(traceparent: str, tracestate: str) -> None:
    """Whatever is followed can be sent on, for no byte of it ends a header; and nobody logs any of it."""
    for parent in (traceparent, f"00-{'1' * 32}-{'2' * 16}-01"):
        with nothing_logged():
            found = context.extract({"traceparent": parent, "tracestate": tracestate})
        sent = context.inject(found)
        assert set(sent) <= {"traceparent", "tracestate"}
        assert all(value.isascii() and value.isprintable() for value in sent.values())


@contextlib.contextmanager
def nothing_logged() -> Iterator[None]:
    """By OpenTelemetry."""
    lines: list[str] = []
    keep = logging.Handler()
    keep.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(keep)
    try:
        yield
    finally:
        logger.removeHandler(keep)
    assert not lines


class Served(Connection):
    """A connection whose peer is there, or has left, or nobody knows."""

    def __init__(self, gone: bool | None, paused: bool | None) -> None:
        super().__init__()
        self.arrived = self.parsed = self.received = time.monotonic_ns()
        self.flow = None if paused is None else Object(write_paused=paused)
        self._gone = gone

    def gone(self) -> bool | None:
        return self._gone


def exchange(
    scope: Mapping[str, Any],
    start: Mapping[str, Any],
    bodies: Sequence[bytes],
    connection: Connection,
    engine: Timeline | None,
) -> None:
    """An answer, as an application sends it through the server edge: its client sees the same events."""
    emitted: list[Any] = []
    passed: list[Any] = []
    out = outlet.Outlet(emitted.append, context.capture, lambda *_: None, timing=True)
    head = {"type": "http.response.start", **start}
    rest: list[Any] = [
        {"type": "http.response.body", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, start=1)
    ]

    async def send(message: Any) -> None:
        passed.append({**message, "headers": [*message["headers"]]} if "headers" in message else message)

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        if engine is not None and (server := edge.current.get()) is not None:
            server.collect(engine)
        await send({**head, "headers": iter(head["headers"])})  # ASGI: an iterable
        for message in rest:
            await send(message)

    asgi._reached.clear()
    serving = asgi.serve(out, application, connection, dict(scope), nowhere, send)  # type: ignore[arg-type]
    with nothing_swallowed():
        contextvars.copy_context().run(at_once, serving)
        timelines = [draft.timeline() for draft in emitted]
    for timeline in timelines:
        assert_adds_up(timeline)
        exportable(request_span(timeline, timeline.phases()))
    asked = (pairing.ASK.encode(), b"1") in scope["headers"]
    added = [now for before, now in zip([head, *rest], passed, strict=True) if now != before]
    assert len(added) <= (1 if asked and engine is not None else 0)
    seen, meant = (b"".join(message["body"] for message in part) for part in (passed[1:], rest))
    assert dispatched(seen) == dispatched(meant)
    if {name.lower() for name, _ in head["headers"]} & {b"content-length", b"content-encoding"}:
        assert seen == meant
    for message in added:
        if message["type"] == "http.response.start":
            *own, (name, value) = message["headers"]
            assert (own, name, seen) == (head["headers"], pairing.HEADER.encode(), meant)
            timing = pairing.from_header(value.decode("latin-1"))
        else:
            timing = pairing.from_comment(message["body"])
        assert timing is not None
        assert sane(timing)


def dispatched(stream: bytes) -> list[tuple[str, str, str]]:
    """
    The events that a reader is told of: type, data, id.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    events: list[tuple[str, str, str]] = []
    data: list[str] = []
    kind = last = ""
    *lines, _ = re.split("\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    for line in lines:
        if not line:
            if data:
                events.append((kind or "message", "\n".join(data), last))
            data, kind = [], ""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last = value
    return events


# What the engine core tells.


def told_steps(said: str) -> None:
    """Read, or refused by an error that counts; what is read can be exported, with all its labels."""
    errors: list[Exception] = []
    later = Later(nowhere, _vllm_told.read, "steps", lambda _place, error: errors.append(error))
    later.keep((said, "m"))
    found = later.told()
    assert all(isinstance(error, (ValueError, IndexError)) for error in errors)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    writer = EngineWriter(provider.get_meter("m"))
    with nothing_swallowed():
        for step in found:
            assert isinstance(step, EngineStep)
            writer.write(step)
        data = reader.get_metrics_data()
    if data is None:
        return
    for metric in encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics:
        for kind in (metric.sum, metric.gauge, metric.histogram):
            for point in kind.data_points:
                assert "otel_llm.engine.index" in {attribute.key for attribute in point.attributes}
                assert math.isfinite(getattr(point, "sum", 0.0))


def told_waits(headers: Mapping[str, str], queued: int, scheduled: int) -> None:
    for key in headers:
        seconds = _vllm_waits.received(headers, key)
        assert seconds is None or 0 <= seconds < _vllm_waits.LONGEST
    stats = Object(
        num_generation_tokens=2, scheduled_ts=scheduled / 1e9, first_token_ts=0.0, last_token_ts=scheduled / 1e9
    )
    state = Object(stats=stats, detokenizer=None, prompt_len=1, num_cached_tokens=0)
    sample = Sample(Object(), state, 1, False)  # type: ignore[arg-type]
    sample.queued, sample.headers = queued, headers
    _, marks = sample.marks(scheduled, "ok")
    timeline = usual(wall_offset=0, attributes=marks["attributes"])
    exportable(request_span(timeline, timeline.phases()))


# What leaves.


def cleaned(value: object, limit: int) -> None:
    found = sanitize.text(value, limit)
    assert len(found) <= max(limit, len(sanitize.INVALID))
    assert found.isprintable()
    assert found.encode().decode() == found
    counted, number = sanitize.count(value), sanitize.number(value)
    assert counted is None or 0 <= counted < 1 << 63
    assert number is None or 0 <= number < 1 << 63


def exportable(data: SpanData) -> None:
    """No exporter refuses it, and nothing in it is longer than it may be."""
    assert len(data.name) <= 2 * sanitize.TEXT_LIMIT + 1
    assert data.name.isprintable()
    assert data.start <= data.end
    for value in data.attributes.values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                assert len(part) <= sanitize.TEXT_LIMIT
                assert part.isprintable()
            elif isinstance(part, float):
                assert math.isfinite(part)
            else:
                assert -(1 << 63) <= part < 1 << 63
    for child in data.children:
        exportable(child)


class _ThroughTheSdk(Encoder):
    """Takes the way that all odd spans take."""

    def __init__(self, provider: TracerProvider) -> None:
        super().__init__(provider)
        self._unlimited = False


@functools.cache
def _encoders() -> tuple[tuple[CountingIds, Encoder], ...]:
    """That have seen a request."""
    found = []
    for kind in (Encoder, _ThroughTheSdk):
        ids = CountingIds()
        encoder = kind(TracerProvider(resource=Resource({}), shutdown_on_exit=False, id_generator=ids))
        _encoded(encoder, usual())
        found.append((ids, encoder))
    return tuple(found)


def _encoded(encoder: Encoder, timeline: Timeline) -> tuple[list[bytes], int]:
    root = SpanContext(1, 1, False, TraceFlags(1))
    describe = functools.partial(request_span, timeline, timeline.phases())
    return encoder.spans(Decided("s", root, None, SpanKind.SERVER, (), {}, describe), _sendable)


def exported(timeline: Timeline) -> None:
    """What is encoded here can be read, and says what the SDK would have."""
    found = []
    for ids, encoder in _encoders():
        ids.spans = 1
        spans, odd = _encoded(encoder, timeline)
        message = ExportTraceServiceRequest.FromString(encoder.request("s", spans))
        read = list(message.resource_spans[0].scope_spans[0].spans)
        assert len(read) == len(spans)
        assert all(span.name.isprintable() for span in read)
        found.append((read, odd))
    assert found[0] == found[1]


# What a report is made of.


def sent_traces() -> bytes:
    """A message of one request."""
    _, encoder = _encoders()[0]
    return encoder.request("s", _encoded(encoder, usual())[0])


def sent_metrics() -> bytes:
    """A message of one request."""
    reader = InMemoryMetricReader()
    Recorder(None, MeterProvider([reader], Resource({}), shutdown_on_exit=False)).record(usual())
    data = reader.get_metrics_data()
    assert data is not None
    return encode_metrics(data).SerializeToString()


def message(body: bytes) -> None:
    for read in (otlp.spans, otlp.points):
        with contextlib.suppress(DecodeError):
            list(read(body))


def telemetry(traces: bytes, metrics: bytes) -> None:
    """What a receiver believes, told as a report."""
    with received() as receiver:
        for take, body in ((receiver.take_traces, traces), (receiver.take_metrics, metrics)):
            with contextlib.suppress(DecodeError):
                take(body)
        reported(receiver.spans(), receiver)


@contextlib.contextmanager
def received() -> Iterator[Receiver]:
    """One that listens and is asked nothing."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver._server.server_close()


def request_parts(spans: Sequence[otlp.Span]) -> list[Request]:
    found = requests(spans)
    for request in found:
        assert isinstance(request.duration, int)
        counts = (request.prompt_tokens, request.cached_tokens, request.output_tokens)
        assert all(count is None or isinstance(count, int) for count in counts)
        assert request.time_per_output_token is None or request.output_tokens
    return found


def reported(spans: Sequence[otlp.Span], receiver: Receiver) -> tuple[list[Summary], list[Request]]:
    found = request_parts(spans)
    seen = [Exchange(request.trace_id, 1, None, None) for request in found]
    middle = found[len(found) // 2].start if found else 1
    levels = [Level(1, 0, middle, seen[::2]), Level(2, middle, None, seen[1::2]), Level(4)]
    summaries = [summarise(level, found, 2 * middle) for level in levels]
    for shown in _tables(summaries):
        assert shown
    assert all(isinstance(text, str) for text in findings.sentences(summaries, found, receiver))
    assert findings.faults(summaries)
    return summaries, found


def _tables(summaries: Sequence[Summary]) -> list[RenderableType]:
    return [
        tables.progress(summaries[:1], summaries[1], (8,), 100),
        tables.latency(summaries, 100),
        tables.phases(summaries, 100),
    ]


def drawn_page(spans: Sequence[otlp.Span]) -> None:
    with received() as receiver, tempfile.TemporaryDirectory() as folder:
        summaries, found = reported(spans, receiver)
        Console(file=io.StringIO(), width=100).print(*_tables(summaries))
        path = Path(folder) / "page.html"
        page.write(path, summaries, found, setting="s", findings=findings.sentences(summaries, found, receiver))
        assert path.read_text(encoding="utf-8").count("<script") == _scripts()


@functools.cache
def _scripts() -> int:
    """In the page of a run in which nothing arrived."""
    with received() as receiver, tempfile.TemporaryDirectory() as folder:
        page.write(Path(folder) / "page.html", reported((), receiver)[0], (), setting="", findings=())
        return (Path(folder) / "page.html").read_text(encoding="utf-8").count("<script")


def posted(content: bytes) -> None:
    """Bytes on a connection of the receiver's: answered or not, it goes on, and nobody is told of an error."""
    with received() as receiver, contextlib.ExitStack() as ends:
        here, there = (ends.enter_context(end) for end in socket.socketpair())
        there.sendall(content)
        there.shutdown(socket.SHUT_WR)
        receiving._Handler(here, ("127.0.0.1", 0), Object(receiver=receiver))  # type: ignore[arg-type]
        here.close()
        answered = b"".join(iter(lambda: there.recv(1 << 16), b""))
        assert not answered or answered.startswith(b"HTTP/1.") or b"<html" in answered.lower()
        assert set(re.findall(rb"^HTTP/1\.1 (\d+)", answered, re.MULTILINE)) <= _STATUSES


_STATUSES = {b"200", b"400", b"404", b"413", b"414", b"415", b"431", b"501", b"505"}


# What programs are told by their environment and by other programs.


def settings(environment: Mapping[str, str]) -> None:
    try:
        found = config.Settings.load(environment=environment)
    except ValueError:
        return
    assert found.engines is None or all(name == name.strip() != "" for name in found.engines)
    assert found.targets is None or all(value is None or 0 < value < math.inf for value in found.targets)
    assert found.sampled_per_second >= 0
    CappedSampler(Object(), found.sampled_per_second)._take()  # type: ignore[arg-type]


def sdk_setting(value: str) -> None:
    with mock.patch.dict(os.environ, {"OTEL_BSP_SCHEDULE_DELAY": value}):
        found = setting("OTEL_BSP_SCHEDULE_DELAY", 5000)
    assert 0 < found / 1000 <= threading.TIMEOUT_MAX


def examined(endpoint: str, protocol: str) -> None:
    """A collector's address, whatever it is, gives one line, without the credentials in it."""

    def nobody(address: tuple[str, int], *_: object) -> None:
        socket.getaddrinfo(*address, flags=socket.AI_NUMERICHOST)  # refuses what the resolver would, asks nobody
        raise ConnectionRefusedError

    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with mock.patch.dict(os.environ, variables), mock.patch.object(socket, "create_connection", nobody):
        found = doctor._collector()
    assert not found.ok
    assert SECRET not in found.detail


class Wire(socket.socket):
    """One end of a pair, to be taken for TCP."""

    def setsockopt(self, *_: object) -> None:
        """There is no Nagle on it."""


@contextlib.contextmanager
def server_that_says(content: bytes) -> Iterator[None]:
    """Whoever connects is told this, once the other end has been written to."""
    with contextlib.ExitStack() as ends:

        def connect(*_: object, **__: object) -> socket.socket:
            here, there = socket.socketpair()
            ends.enter_context(there).sendall(content)
            there.shutdown(socket.SHUT_WR)
            wire = ends.enter_context(Wire(fileno=here.detach()))
            wire.settimeout(5)
            return wire

        ends.enter_context(mock.patch("socket.create_connection", connect))
        ends.enter_context(mock.patch("urllib3.util.connection.create_connection", connect))
        yield


def grafana(url: str, token: str, content: bytes) -> None:
    """What a Grafana, or what is none, answers with: pushed, or an error that says so in a line."""
    models = {"d.json": {"uid": "u", "title": "t"}}
    with server_that_says(content), mock.patch.object(dashboards, "models", return_value=models):
        try:
            said = dashboards.push(url, token)[0].title
        except dashboards.GrafanaError as refused:
            said = str(refused)
    assert SECRET not in said
    assert sanitize.text(said, len(said)) == said or not url.isprintable()


def collector_answer(content: bytes) -> None:
    """What a collector answers with: the exporter is given a short answer, or an error that counts as a loss."""
    with server_that_says(content), answers.session() as session:
        try:
            found = session.post(URL, data=b"x", timeout=5)
        except (http.RequestException, ValueError):  # the latter for a redirection to no address
            return
        assert len(found.content) <= answers.ANSWER_LIMIT
