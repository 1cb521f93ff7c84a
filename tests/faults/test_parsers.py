"""Whatever comes from outside, the readers of it raise nothing but what they say, and believe nothing."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from otel_llm import pairing, sse
from otel_llm.report import otlp
from otel_llm.report.receiver import Receiver
from otel_llm.telemetry import context
from otel_llm.timeline import PHASES
from tests.faults.programs import wait_for
from tests.fuzz import checks

LARGEST = 64 * 2**20
values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text() | some.sampled_from(PHASES),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text() | some.sampled_from(PHASES), inner),
    max_leaves=12,
)


@given(some.binary() | some.binary().map(lambda junk: b"data: x\n" + pairing.MARK + junk))
def test_comments(events: bytes) -> None:
    """Seen to fail without the ``except`` around json.loads, and without _believed."""
    checks.comment(events)


durations = some.integers(0, 1 << 40) | some.integers() | some.booleans() | some.floats()


@settings(max_examples=1000)
@given(
    some.dictionaries(some.sampled_from(PHASES), some.integers(0, 1 << 40), min_size=1)
    | some.dictionaries(some.sampled_from(PHASES) | some.text(), durations)
    | values,
    some.text() | some.none() | some.integers() | values,
    durations | some.none(),
    some.just(0) | durations,
)
def test_comments_that_are_json(phases: Any, engine: Any, stamp: Any, stall: Any) -> None:
    """Seen to fail with each of the looks of _believed and _time taken out."""
    content = {"v": 1, "phases": phases, "engine": engine, "first_body": stamp, "peer_stall": stall}
    checks.comment(pairing.MARK + json.dumps(content).encode() + b"\n\n")


metrics = some.builds(
    "{}{};dur={}".format,
    some.sampled_from(("otel-llm", *PHASES)) | some.text(),
    some.sampled_from(("", ";desc=vllm")) | some.text(),
    some.sampled_from(("0.000001", "12.500000", f"{10**12 - 1}.000000"))
    | some.from_regex(r"[0-9]{1,14}\.[0-9]{6}", fullmatch=True)
    | some.text(),
)
total = some.just("otel-llm;desc=vllm;dur=0.000001") | metrics


@settings(max_examples=1000)
@given(some.text() | some.tuples(total, metrics, metrics).map(", ".join))
def test_headers(value: str) -> None:
    """Seen to fail without the look at the engine, and without _LARGEST: more nanoseconds than a client can add up."""
    checks.header(value)


@given(
    some.binary()
    | some.binary().map(lambda junk: b"data: " + junk)
    | values.map(lambda value: b"data: " + json.dumps(value).encode())
    | values.map(lambda value: b"data: " + json.dumps({"choices": [value]}).encode())
)
def test_events(events: bytes) -> None:
    """Seen to fail without the ``except`` around json.loads, and without each of the looks at what is a dict."""
    checks.event(events)


@pytest.mark.parametrize("event", [b"data: " + b"[" * 60_000, b"data: " + b'{"a":' * 10_000, b"data: " + b"9" * 60_000])
def test_events_that_are_deep_or_long(event: bytes) -> None:
    """Seen to fail without the ``except`` of RecursionError and ValueError in sse."""
    assert sse.bears_token(event)


def test_a_giant_event_is_not_parsed() -> None:
    """Seen to fail without sse.LARGEST: megabytes of JSON were read to find no output in them."""
    role = b'data: {"choices": [{"delta": {"role": "%b"}}]}\n\n'
    assert not sse.bears_token(role % b"assistant")
    assert sse.bears_token(role % (b"a" * sse.LARGEST))


@given(some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=25), values)
def test_a_model_is_named_as_json_writes_it(name: str, prompt: Any) -> None:
    """Seen to fail with an escape taken for two backslashes: a name with a quote or beyond ASCII was none."""
    checks.named_model(name, prompt)


@given(
    some.binary(max_size=300).flatmap(lambda junk: some.sampled_from((b'{"model":"' + junk, b'{"model":"%b"' % junk)))
)
def test_a_model_in_what_is_no_json(body: bytes) -> None:
    """Seen to fail without the ``except`` around json.loads: a control character in a name."""
    checks.request_body(body)
    checks.request_body(body.decode("utf-8", "surrogateescape"))


@given(some.text(alphabet=some.characters(max_codepoint=255)), some.text(alphabet=some.characters(max_codepoint=255)))
def test_trace_headers(traceparent: str, tracestate: str) -> None:
    """Seen to fail without context._usable."""
    checks.trace_headers(traceparent, tracestate)


@pytest.mark.parametrize(
    ("state", "followed"),
    [
        ("a=b, 1@c=d e ,", "a=b,1@c=d e"),
        ("what stands in it", None),
        ("a=\x9b31m", None),
        (",".join(f"a{number}=b" for number in range(32)), ",".join(f"a{number}=b" for number in range(32))),
        (",".join(f"a{number}=b" for number in range(33)), None),
        ("a=" + 8191 * "b", None),
        ("a=b,a=c", None),
    ],
)
def test_a_trace_state_that_cannot_be_used_is_in_no_log(
    state: str, followed: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail with the propagator alone, which quotes a client in a line of the log for each of its requests."""
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    carried = context.inject(context.extract({"traceparent": parent, "tracestate": state}))
    assert carried == {"traceparent": parent, **({"tracestate": followed} if followed else {})}
    context.extract({"traceparent": parent + "-" + "x" * 600, "tracestate": state})
    assert caplog.records == []


def pair(value: some.SearchStrategy[AnyValue]) -> some.SearchStrategy[KeyValue]:
    return some.builds(KeyValue, key=some.sampled_from(("service.instance.id", "otel_llm.phase")), value=value)


any_value = some.recursive(
    some.builds(AnyValue)
    | some.builds(AnyValue, int_value=some.integers(-(1 << 63), (1 << 63) - 1))
    | some.builds(AnyValue, double_value=some.floats())
    | some.builds(AnyValue, bytes_value=some.binary()),
    lambda inner: (
        some.builds(AnyValue, array_value=some.builds(ArrayValue, values=some.lists(inner, max_size=3)))
        | some.builds(AnyValue, kvlist_value=some.builds(KeyValueList, values=some.lists(pair(inner), max_size=3)))
    ),
    max_leaves=6,
)


def as_traces(attributes: list[KeyValue]) -> bytes:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.extend(attributes)
    resource.scope_spans.add().spans.add().attributes.extend(attributes)
    return message.SerializeToString()


@given(some.binary(max_size=400) | some.lists(pair(any_value), max_size=3).map(as_traces))
def test_messages(body: bytes) -> None:
    """Seen to fail without the look at the kind of a value, which may be none."""
    checks.message(body)


keys = some.sampled_from(
    (
        "otel_llm.outcome", "otel_llm.phase", "otel_llm.preemptions", "gen_ai.request.model",
        "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.latency.time_to_first_token",
    )
)  # fmt: skip
plain = (
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text()
    | some.binary()
    | some.sampled_from((None, ("a",)))
)
ids = some.sampled_from(("01", "02", "03"))
spans = some.builds(
    otlp.Span,
    trace_id=ids,
    span_id=ids,
    parent_id=ids | some.none(),
    name=some.text(),
    start=some.integers(0, 2**64 - 1),
    end=some.integers(0, 2**64 - 1),
    attributes=some.dictionaries(keys, plain | some.sampled_from(PHASES))
    | some.fixed_dictionaries(
        {
            "otel_llm.outcome": some.just("ok"),
            "gen_ai.usage.output_tokens": plain,
            "gen_ai.latency.time_to_first_token": plain,
        }
    )
    | some.fixed_dictionaries({"otel_llm.phase": some.sampled_from(PHASES)}),
    failed=some.booleans(),
    process=some.just(""),
)


@settings(max_examples=60, deadline=None)
@given(some.lists(spans, max_size=6))
def test_spans_of_a_report(found: list[otlp.Span]) -> None:
    """
    Attributes of any type, times in any order, parents in a circle: a report is made all the same.

    Seen to fail without the look at what is a number, and without that at what is a count.
    """
    checks.request_parts(found)


@pytest.fixture(scope="module")
def served() -> Any:
    with Receiver() as receiver:
        wait_for(int(receiver.url.rpartition(":")[2]))
        yield receiver


def post(receiver: Receiver, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection(receiver.url.removeprefix("http://"), timeout=20)
    sent = {
        "Content-Type": "application/x-protobuf",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    connection.request("POST", "/v1/traces", body, sent)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("length", ["-1", "x", "9" * 5000, "1e3", "²"])
def test_a_length_that_is_none(served: Receiver, length: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Seen to fail with ``int()`` alone: a traceback, and no answer."""
    assert post(served, b"", Content_Length=length) in (200, 413)
    assert capfd.readouterr().err == ""


def test_a_small_body_that_unpacks_to_a_large_one(served: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail with a decompression without limit: all of it was in memory and read."""
    read: list[int] = []
    take = served.take_traces
    monkeypatch.setattr(served, "take_traces", lambda body: (read.append(len(body)), take(body)))
    refused = served.refused
    bomb = bytes(LARGEST + 2**20)
    assert post(served, gzip.compress(bomb), Content_Encoding="gzip") == 400
    assert post(served, zlib.compress(bomb), Content_Encoding="deflate") == 400
    assert post(served, gzip.compress(b"")[:-4], Content_Encoding="gzip") == 400
    assert post(served, gzip.compress(b""), Content_Encoding="gzip") == 200
    assert served.refused == refused + 3
    assert read == [0]
