"""
The readers of the outside, by name: each target takes bytes, and raises if what must hold does not.

What it reads is drawn out of the bytes where it has a structure. ``@target``
is given bytes to begin with, those that once broke something among them.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from otel_llm import config, pairing
from otel_llm.client_timeline import CLIENT_PHASES
from otel_llm.engines import _vllm_waits
from otel_llm.report.otlp import Span
from otel_llm.report.requests import PHASE_ORDER
from otel_llm.timeline import Timeline
from tests.fuzz import checks
from tests.fuzz.drawn import Drawn
from tests.golden.test_golden import request as usual


class Target(NamedTuple):
    """One reader."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


TARGETS: Final[dict[str, Target]] = {}


def target(*seeds: bytes) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def named(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, (b"", *seeds))
        return run

    return named


COMMENT = b': otel-llm {"v":1,"engine":"vllm","phases":{"network":5,"decode":7},"first_token":6,"peer_stall":2}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
METRICS = b'{"choices":[],"metrics":{"queue_time_ms":1.5,"time_to_first_token_ms":2,"generation_time_ms":1e1}}'
END = b"data: [DONE]\n\n"
HEADER = "otel-llm;desc=vllm;dur=0.012000, network;dur=0.005000, decode;dur=0.007000"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

WORDS: Final = (
    COMMENT, TOKEN, ROLE, METRICS, END, PARENT,
    *(
        word.encode()
        for word in (
            *CLIENT_PHASES, HEADER, "\r\n", '"v":1', "first_body", "event: x\n", "response.output_text.delta",
            "message_delta", '"type":', '"error":', '"model":', "NaN", "Infinity", "1e999", "\ufeff",
            "otel_llm.outcome", "otel_llm.phase", "gen_ai.usage.output_tokens", "gen_ai.latency.time_to_first_token",
            "service.instance.id", "gen_ai.server.request.duration", "POST /v1/traces HTTP/1.1\r\n",
            "Content-Length: 5\r\n", "Content-Type: application/x-protobuf\r\n", "Content-Encoding: gzip\r\n",
            "Transfer-Encoding: chunked\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 404 Not Found\r\n",
            "HTTP/1.1 302 Found\r\nLocation: ", "http://127.0.0.1:1/", "grpc", "http://", "https://", "@", "[::1]",
            ":99999", '{"dashboard": {"uid": "u"}}', "inf", "true", "0.5",
        )
    ),
)  # fmt: skip
"""For the fuzzer, which cannot guess them."""


@target(COMMENT, b"data: x\n" + COMMENT)
def comment(data: bytes) -> None:
    checks.comment(data)
    checks.comment(pairing.MARK + data)


@target(HEADER.encode(), b"cache;dur=1.5, " + HEADER.encode())
def header(data: bytes) -> None:
    checks.header(data.decode("latin-1"))
    checks.header(data.decode("utf-8", "surrogateescape"))


@target(TOKEN, ROLE + TOKEN, ROLE + END, b'data: {"type":"message_delta","delta":{}}\n\n', b'data: {"error":1}\r\n\r\n')
def event(data: bytes) -> None:
    checks.event(data)
    checks.event(b"data: " + data)
    first, _, second = data.partition(b"|")
    checks.events_in_turn(first, second)


EVENT_WORDS = ("choices", "delta", "role", "content", "text", "type", "message_delta", ".delta", "error", "usage")


@target()
def told_by_a_server(data: bytes) -> None:
    """The comment and the events, as JSON of any content."""
    drawn = Drawn(data)
    words = (*PHASE_ORDER, "v", "phases", "engine", "first_body", "first_token", "peer_stall")
    content = {
        "v": 1,
        "phases": drawn.value(words),
        "engine": drawn.value(words),
        "first_body": drawn.value(words),
        "peer_stall": drawn.value(words),
    }
    checks.comment(pairing.MARK + json.dumps(content).encode() + b"\n\n")
    checks.event(b"data: " + json.dumps(drawn.value(EVENT_WORDS)).encode())


STEPS_NS = (0, 1_000, 50_000, 200_000, 2_000_000, 10**9)
"""How long an act of an instrumented client takes."""


@target(
    bytes([1, 0, 0, 0, 0, 1, 2, 3, 4]) + ROLE + TOKEN + COMMENT + END,
    bytes([1, 0, 2, 1, 0, 3, 9, 9, 9]) + METRICS,
)
def answer(data: bytes) -> None:
    """The client edge."""
    drawn = Drawn(data)
    stream, cut, at_once = drawn.some(), drawn.some(), drawn.some()
    status = drawn.one_of((200, 400, 503))
    headers = {"content-type": "text/event-stream" if stream else "application/json"}
    if drawn.some():
        headers[pairing.HEADER] = drawn.text() if drawn.some() else HEADER
    said = drawn.content() if drawn.some() else b""
    steps, sizes = Drawn(drawn.take(16)), [1 + drawn.number() for _ in range(drawn.number() % 24)]
    chunks = [drawn.take(size) for size in sizes]
    checks.answer(
        status,
        headers,
        [chunk for chunk in (*chunks, drawn.rest()) if chunk],
        cut=cut,
        at_once=at_once,
        clock=checks.Clock(lambda: steps.one_of(STEPS_NS)),
        said=said,
    )


@target(b'{"model": "m", "prompt": "p"}', b'{"x":1,"model":"a\\"b"}')
def asked_of_a_server(data: bytes) -> None:
    """The body of a request, and the count of tries in its headers."""
    checks.request_body(data)
    checks.request_body(data.decode("utf-8", "surrogateescape"))
    checks.resend_count(data.decode("latin-1"))
    drawn = Drawn(data)
    name = drawn.take(40).decode("utf-8", "ignore")
    if name:
        checks.named_model(name, drawn.value(("model", '"model":')))


@target(PARENT + b"|a=b", PARENT + b"|" + b",".join(b"k%d=v" % number for number in range(33)))
def trace_headers(data: bytes) -> None:
    parent, _, state = data.decode("latin-1").partition("|")
    checks.trace_headers(parent, state)


PATHS = ("/v1/chat/completions", "/v1/completions", "/health", "")
HEADERS = (b"traceparent", b"tracestate", b"x-otel-llm-timing", b"baggage")
CHUNKS = (TOKEN, ROLE, END, COMMENT, b"\n", b"\r\n", b"event: x\n", b"data: ", b"[DONE]", b": keep-alive\n\n")


@target(
    b"\x01\x00\x00\x00\x00\x02\x00\x00\x00\x02",  # times are told
    b"\x01\x00\x00\x00\x00\x02\x00\x06\x00\x02",  # an end with a name
    b"\x01\x00\x00\x01\x00\x00\x02\x00\x00\x00\x02",  # a length
    b"\x01\x00\x00\x00\x00\x03\x00\x00\x00\x04\x00\x02\x01\x01\x01",  # memoryviews, and a flow that is known
)
def exchange(data: bytes) -> None:
    """The server edge."""
    drawn = Drawn(data)
    headers = [(b"x-otel-llm-timing", b"1")] if drawn.some() else []
    headers += [(drawn.one_of(HEADERS), drawn.content()) for _ in range(drawn.number() % 4)]
    kind = drawn.one_of((b"text/event-stream", b"text/event-stream; charset=utf-8", b"application/json"))
    more = [(drawn.one_of((b"Content-Length", b"x", b"content-encoding")), b"1")] if drawn.some() else []
    start = {"status": drawn.one_of((200, 204, 400, 499, 500)), "headers": [(b"content-type", kind), *more]}
    bodies = [drawn.content() if drawn.some() else drawn.one_of(CHUNKS) for _ in range(drawn.number() % 16)]
    form = drawn.one_of((bytes, memoryview))
    connection = checks.Served(drawn.one_of((None, False, True)), drawn.one_of((None, False, True)))
    scope = {"type": "http", "method": "POST", "path": drawn.one_of(PATHS), "headers": headers}
    engine = _timeline(drawn, time.monotonic_ns() - 10 * checks.SECOND)
    checks.exchange(scope, start, [form(body) for body in bodies or [b""]], connection, engine)


OUTCOMES = ("ok", "abort", "error", "reject")


def _timeline(drawn: Drawn, begin: int, **fields: Any) -> Timeline | None:
    """A request whose stamps agree or do not; None where it would end before it starts."""
    names = ("received", "submitted", "scheduled", "first_token", "last_token", "ended")
    stamps = {name: begin + int.from_bytes(drawn.take(4), "little") for name in names if drawn.some()}
    stamps.setdefault("ended", begin + 2**32)
    try:
        return usual(**{**stamps, "outcome": drawn.one_of(OUTCOMES), "output_tokens": drawn.number(), **fields})
    except ValueError:
        return None


@target(b"0;1 5;2 7 3 0.5", b"0;1 5 5 nan", b"-1;1 -5", b"99999999999999999999;1 5", b"0;1 5 5 1e999", b"\xff;1 5 5")
def steps(data: bytes) -> None:
    checks.told_steps(data.decode("utf-8", "surrogateescape"))


@target(b"\x00" * 16 + b"1.5", b"\x00" * 16 + b"1e300", b"\x00" * 16 + b"-1", b"\x00" * 16 + b"nan")
def waits(data: bytes) -> None:
    drawn = Drawn(data)
    queued, scheduled = (1 + drawn.unsigned() % 2**50 for _ in range(2))
    grammar, _, transfer = drawn.rest().decode("utf-8", "surrogateescape").partition("|")
    headers = {_vllm_waits.GRAMMAR_READY: grammar, _vllm_waits.KV_TRANSFER: transfer}
    checks.told_waits(headers, queued, scheduled)


class _Text(str):
    """Raises in all that it is asked."""

    def __getitem__(self, _key: object) -> str:
        raise RuntimeError

    __str__ = isascii = encode = __getitem__  # type: ignore[assignment]


@target(b"\x00\xff\x06", b"\x00\x05\x03\x06" + b"\xff" * 200)
def cleaned(data: bytes) -> None:
    drawn = Drawn(data)
    limit = drawn.number()
    for value in (drawn.value(), drawn.content(), _Text(drawn.text()), drawn.rest().decode("utf-8", "surrogateescape")):
        checks.cleaned(value, limit)


@target()
def exported(data: bytes) -> None:
    """What stands in a request that leaves."""
    drawn = Drawn(data)
    fields: dict[str, Any] = {
        "model": drawn.scalar(),
        "request_id": drawn.scalar(),
        "error_type": drawn.scalar(),
        "operation": drawn.text(),
        "engine": drawn.text(),
        "finish_reasons": tuple(drawn.text() for _ in range(drawn.number() % 4)),
        "prompt_tokens": drawn.whole(),
        "preemptions": drawn.whole(),
        "attributes": {key: drawn.scalar() or 0 for key in ("otel_llm.engine.queue_time", "otel_llm.engine.clock")},
        "wall_offset": drawn.whole() >> 8,
    }
    timeline = _timeline(drawn, 0, **fields)
    if timeline is not None and timeline.wall(timeline.start):  # the SDK takes 0 for now
        checks.exported(timeline)


NAMES = (
    "otel_llm.outcome", "otel_llm.phase", "otel_llm.preemptions", "gen_ai.request.model",
    "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.latency.time_to_first_token",
)  # fmt: skip


def _span(drawn: Drawn) -> Span:
    start = drawn.unsigned() if drawn.some() else drawn.number()
    attributes: dict[str, Any] = {"otel_llm.outcome": drawn.one_of(OUTCOMES)} if drawn.some() else {}
    for _ in range(drawn.number() % 4):
        value = drawn.scalar((*PHASE_ORDER, *OUTCOMES))
        if isinstance(value, int):  # of which OTLP has 64 bits
            value = min(max(value, -(1 << 63)), (1 << 63) - 1)
        attributes[drawn.one_of(NAMES)] = value
    ids = ("01", "02", "03", "04")
    return Span(
        trace_id=drawn.one_of(ids[:2]),
        span_id=drawn.one_of(ids),
        parent_id=drawn.one_of((None, *ids)),
        name=drawn.text(),
        start=start,
        end=drawn.unsigned() if drawn.some() else start + drawn.number(),
        attributes=attributes,
        failed=drawn.some(),
        process="",
    )


def _spans(data: bytes) -> list[Span]:
    drawn = Drawn(data)
    return [_span(drawn) for _ in range(drawn.number() % 12)]


@target(
    b"\xfe\x00\x01\x8a-accept\x00\x00\x00}}}\x01}\x00\x00}}}\xfb<\x00\xf7\x00\x00\x8a\xf7",
    b"\xa1\x00\x02+\x00 \x00\x00 \x00\x00\x00\x00\x00\x00\x00+\x00\x00\xed++\xa1"
    b"\x00\x00+\xa1\x00\x22v\x22:1\xa1\x00\x00++\x8e\x8e\xa1\x00\x00.+\x8e\x8e\xa1\x00",
)  # requests that took no time
def report(data: bytes) -> None:
    """Tables and sentences of any spans."""
    with checks.received() as receiver:
        checks.reported(_spans(data), receiver)


@target()
def report_page(data: bytes) -> None:
    checks.drawn_page(_spans(data))


BAR = b"|||"


@target(checks.sent_traces() + BAR + checks.sent_metrics())
def messages(data: bytes) -> None:
    """OTLP, as it comes in: traces, a bar, metrics."""
    traces, _, metrics = data.partition(BAR)
    checks.message(data)
    checks.telemetry(traces, metrics)


HEAD = b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/x-protobuf\r\n"
PACKED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"gzip", gzip.compress),
    (b"deflate", zlib.compress),
    (b"identity", bytes),
    (b"gzip", bytes),
    (b"br", bytes),
)


@target(
    b"\x01" + HEAD + b"Content-Length: 2\r\n\r\n\n\x00",
    b"\x01GET / HTTP/1.1\r\n\r\n",
    b"\x00\x00\xff" + checks.sent_traces(),
)
def posted(data: bytes) -> None:
    """A connection to the receiver: of any bytes, or a well-formed request with any body, packed as it says or not."""
    drawn = Drawn(data)
    if drawn.some():
        checks.posted(drawn.rest())
        return
    encoding, pack = drawn.one_of(PACKED)
    cut = drawn.number()
    body = pack(drawn.rest())
    body = body[: len(body) - cut] if cut < 8 else body
    checks.posted(HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body)) + body)


VARIABLES = (
    config.ENGINES, config.SLO_TTFT, config.SLO_TPOT, config.PUBLIC_ENDPOINT, config.TIMING, config.SAMPLED_PER_SECOND,
)  # fmt: skip


@target(b"vllm, ,x|0.5|0.1|1|yes|inf", b"||nan", b"|||||nan", b"|||||-1", b"|||||1e400", b"9" * 20, b"9" * 4301)
def environment(data: bytes) -> None:
    values = data.decode("utf-8", "surrogateescape").replace("\0", "").split("|")
    checks.settings(dict(zip(VARIABLES, values, strict=False)))
    checks.sdk_setting(values[0])


@target(b"\x00http://|localhost:4318", b"\x01|[::1", b"\x00http://|h:99999", b"\x00http://|" + b"a" * 70)
def collector_address(data: bytes) -> None:
    protocol = ("grpc", "http/protobuf")[data[:1] == b"\x01"]
    before, _, after = data[1:].decode("utf-8", "surrogateescape").replace("\0", "").partition("|")
    checks.examined(f"{before}user:{checks.SECRET}@{after}", protocol)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
FOUND = b'{"dashboard": {"uid": "u", "title": "t", "version": 3}}'


@target(
    OK % (len(FOUND), FOUND), OK % (2, b"{}"), OK % (2, b"[]"), OK % (9, b"{}"), b"x\r\n\r\n",
    b"HTTP/1.1 404 -\r\n\r\n", b"HTTP/1.1 500 \x1b[31m\r\n\r\n",
)  # fmt: skip
def grafana(data: bytes) -> None:
    checks.grafana(checks.URL, checks.SECRET, data)


@target(b"http://h|\r", b"http://[|", b"x|", b"http://h/\n|")
def grafana_address(data: bytes) -> None:
    """What the user says, and an empty answer."""
    url, _, end = data.decode("utf-8", "surrogateescape").partition("|")
    checks.grafana(url, checks.SECRET + end, OK % (len(FOUND), FOUND))


@target(OK % (0, b""), OK % (9, b"{}"), b"x\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n")
def collector_answer(data: bytes) -> None:
    checks.collector_answer(data)
