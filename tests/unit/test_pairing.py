"""What crosses the wire is data from outside, and the client's identity holds whatever it says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_llm import pairing, sse
from otel_llm.client_timeline import ClientTimeline
from otel_llm.pairing import ServerTiming
from otel_llm.timeline import PHASES

NS = st.integers(0, 10**12)
TIMINGS = st.builds(
    lambda phases, body, token, stall: ServerTiming(
        phases,
        "vllm",
        body and min(body, sum(phases.values())),
        token and min(token, sum(phases.values())),
        min(stall, phases.get("network", 0)),
    ),
    st.dictionaries(st.sampled_from((*PHASES, "unsplit")), NS, min_size=1),
    st.none() | NS,
    st.none() | NS,
    NS,
)


@given(TIMINGS)
def test_a_comment_says_what_was_written(timing: ServerTiming) -> None:
    stream = b"data: {}\n\n" + pairing.to_comment(timing) + b"data: [DONE]\n\n"
    assert pairing.from_comment(stream) == timing


@given(TIMINGS)
def test_a_header_says_the_phases(timing: ServerTiming) -> None:
    header = "cache;dur=1.5, " + pairing.to_header(timing) + ', db;desc="x, y"'
    assert pairing.from_header(header) == ServerTiming(timing.phases, "vllm")


@given(st.binary(max_size=300), st.text(max_size=300))
def test_nothing_from_outside_raises(content: bytes, text: str) -> None:
    pairing.from_comment(content)
    pairing.from_comment(pairing.MARK + content)
    pairing.from_header(text)
    sse.bears_token(content)
    sse.bears_token(b"data: " + content)


def test_what_cannot_be_true_is_not_believed() -> None:
    for content in (
        b'{"v":2,"engine":"vllm","phases":{"decode":1}}',
        b'{"v":1,"engine":"vllm","phases":{}}',
        b'{"v":1,"engine":"vllm","phases":{"decode":-1}}',
        b'{"v":1,"engine":"vllm","phases":{"decode":1.5}}',
        b'{"v":1,"engine":"vllm","phases":{"decode":true}}',
        b'{"v":1,"engine":"vllm","phases":{"other":1}}',
        b'{"v":1,"engine":7,"phases":{"decode":1}}',
        b'{"v":1,"engine":"vllm","phases":{"network":1},"peer_stall":2}',
        b"[]",
        b"[" * 3000,
    ):
        assert pairing.from_comment(pairing.MARK + content + b"\n\n") is None
    assert pairing.from_comment(b'data: {"text":": otel-llm {\\"v\\":1}"}\n\n') is None


@given(
    times=st.lists(NS, min_size=6, max_size=6).map(sorted),
    backlogs=st.tuples(NS, NS),
    server=st.none() | TIMINGS,
    engine=st.none() | TIMINGS,
    rtt=st.none() | NS,
    sent=st.booleans(),
    outcome=st.sampled_from(("ok", "abort", "error")),
)
def test_the_parts_of_a_client_add_up(
    times: list[int],
    backlogs: tuple[int, int],
    server: ServerTiming | None,
    engine: ServerTiming | None,
    rtt: int | None,
    sent: bool,
    outcome: str,
) -> None:
    attempt = ClientTimeline(
        operation="chat",
        provider="vllm",
        started=times[0],
        sent=times[1] if sent else None,
        answered=times[2],
        first_body=times[3],
        first_token=times[4],
        ended=times[5],
        backlog=backlogs[0],
        first_backlog=backlogs[1],
        server=server,
        engine=engine,
        rtt=rtt,
        outcome=outcome,  # type: ignore[arg-type] # a literal of the strategy
        wall_offset=0,
    )
    assert sum(attempt.phases().values()) == attempt.duration
    assert (attempt.method is None) == ("network" not in attempt.phases())
    if sent and outcome == "ok" and server is not None:
        assert attempt.method == "paired"


def test_a_network_of_no_length_is_known() -> None:
    """As where the caller pauses for longer before it reads a plain answer than the answer was on its way."""
    told = ServerTiming({"decode": 5}, "vllm")
    times = {"started": 0, "sent": 1, "answered": 7, "first_body": 9, "ended": 9, "backlog": 4, "first_backlog": 4}
    attempt = ClientTimeline(operation="chat", provider="vllm", server=told, wall_offset=0, **times)
    assert attempt.phases() == {"connect": 1, "network": 0, "consumer": 3, "decode": 5}
    assert attempt.method == "paired"


def test_which_events_bear_a_token() -> None:
    bear = (
        b'data: {"choices":[{"text":"a"}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"delta":{"reasoning_content":"a"}}]}\r\n\r\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n',
        b'event: x\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n',
        b'data: {"type":"content_block_delta","delta":{"text":"a"}}\n\n',
        b'data: {"token":"a"}\n\n',
        b": keep-alive\n\n" + b'data: {"choices":[{"text":"a"}]}\n\n',
    )
    do_not = (
        b": keep-alive\n\n",
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"text":""}]}\n\n',
        b'data: {"choices":[],"usage":{}}\n\n',
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
        b'data: {"type":"response.created"}\n\n',
        b'data: {"error":{"message":"no"}}\n\n',
        b"data: [DONE]\n\n",
        b"",
    )
    assert [sse.bears_token(event) for event in bear] == [True] * len(bear)
    assert [sse.bears_token(event) for event in do_not] == [False] * len(do_not)
