"""Hand-written loops: each call is one request, and the function is none the wiser."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import otel_llm
from otel_llm import outlet
from otel_llm.recording import Recording
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline

MS = 1_000_000


@pytest.fixture(autouse=True)
def seen(instrumented: None) -> Iterator[list[Timeline]]:
    otel_llm.instrument(engines=["vllm"])
    with recording() as timelines:
        yield timelines
    for timeline in timelines:
        assert_adds_up(timeline)


def phases(timeline: Timeline) -> dict[str, int]:
    return {phase.name: phase.duration for phase in timeline.phases()}


def slept(nanoseconds: int, seconds: float) -> bool:
    """A sleep is never shorter, and on a busy machine may be longer."""
    return seconds * 1e9 <= nanoseconds < seconds * 1e9 + 100 * MS


def test_marks_by_hand(seen: list[Timeline]) -> None:
    with otel_llm.request(model="m", operation="chat", request_id="r-1") as r:
        time.sleep(0.02)
        r.scheduled()
        r.prompt(7, cached=3)
        time.sleep(0.04)
        r.first_token()
        r.tokens(1)
        time.sleep(0.06)
        r.tokens(2)
        time.sleep(0.01)
    (request,) = seen
    found = phases(request)
    assert list(found) == ["queue", "prefill", "decode", "postprocess"]
    assert slept(found["queue"], 0.02)
    assert slept(found["prefill"], 0.04)
    assert slept(found["decode"], 0.06)
    assert slept(found["postprocess"], 0.01)
    assert (request.prompt_tokens, request.cached_tokens, request.output_tokens) == (7, 3, 3)
    assert (request.model, request.operation, request.engine, request.request_id) == ("m", "chat", "custom", "r-1")


def test_a_request_that_never_waited_has_no_queue(seen: list[Timeline]) -> None:
    with otel_llm.request() as r:
        r.tokens(1)
    assert "queue" not in phases(seen[0])


def test_an_exception_is_recorded_and_passes(seen: list[Timeline]) -> None:
    with pytest.raises(ZeroDivisionError), otel_llm.request() as r:  # noqa: PT012
        r.tokens(1)
        _ = 1 / 0
    assert (seen[0].outcome, seen[0].error_type) == ("error", "ZeroDivisionError")
    assert list(phases(seen[0])) == ["prefill", "decode"]


def test_a_plain_function(seen: list[Timeline]) -> None:
    @otel_llm.measured(model="m")
    def generate(prompt: str, *, n: int = 1) -> str:
        """Doc."""
        return prompt * n

    assert generate("a", n=3) == "aaa"
    assert (generate.__name__, generate.__doc__) == ("generate", "Doc.")
    assert seen[0].outcome == "ok"
    assert seen[0].output_tokens is None  # nothing is invented


async def test_a_coroutine_function(seen: list[Timeline]) -> None:
    @otel_llm.measured()
    async def generate() -> int:
        await asyncio.sleep(0.02)
        return 5

    assert asyncio.iscoroutinefunction(generate)
    assert await generate() == 5
    assert slept(seen[0].duration, 0.02)


async def test_a_cancelled_coroutine_is_an_abort(seen: list[Timeline]) -> None:
    @otel_llm.measured()
    async def generate() -> None:
        await asyncio.sleep(10)

    task = asyncio.create_task(generate())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (seen[0].outcome, seen[0].error_type) == ("abort", "cancelled")


def test_a_generator_and_its_items(seen: list[Timeline]) -> None:
    @otel_llm.measured(count=len)
    def generate() -> Iterator[list[int]]:
        time.sleep(0.03)
        yield [1, 2]
        time.sleep(0.05)
        yield [3]

    stream = generate()
    assert seen == []
    assert list(stream) == [[1, 2], [3]]
    found = phases(seen[0])
    assert slept(found["prefill"], 0.03)
    assert slept(found["decode"], 0.05)
    assert seen[0].output_tokens == 3


def test_a_generator_keeps_send_throw_close_and_its_return_value(seen: list[Timeline]) -> None:
    closed = []

    @otel_llm.measured()
    def echo() -> Iterator[int]:
        got = 0
        try:
            while got != 9:
                try:
                    got = yield got  # type: ignore[misc]
                except KeyError:
                    got = -1
        finally:
            closed.append(True)
        return "end"  # type: ignore[misc]

    stream = echo()
    assert next(stream) == 0
    assert stream.send(4) == 4  # type: ignore[attr-defined]
    assert stream.throw(KeyError()) == -1  # type: ignore[attr-defined]
    with pytest.raises(StopIteration) as stop:
        stream.send(9)  # type: ignore[attr-defined]
    assert stop.value.value == "end"
    other = echo()
    next(other)
    other.close()  # type: ignore[attr-defined]
    assert closed == [True, True]
    assert [request.outcome for request in seen] == ["ok", "abort"]


def test_a_dropped_generator_is_an_abort_and_one_never_started_is_nothing(seen: list[Timeline]) -> None:
    @otel_llm.measured()
    def generate() -> Iterator[int]:
        yield 1
        yield 2

    generate()
    stream = generate()
    next(stream)
    del stream
    assert [request.outcome for request in seen] == ["abort"]


async def test_an_async_generator(seen: list[Timeline]) -> None:
    @otel_llm.measured()
    async def generate() -> AsyncIterator[int]:
        for token in range(3):
            await asyncio.sleep(0.01)
            yield token

    assert [token async for token in generate()] == [0, 1, 2]
    assert (seen[0].output_tokens, seen[0].outcome) == (3, "ok")
    stream = generate()
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert seen[1].outcome == "abort"


def test_without_instrument_nothing_happens(seen: list[Timeline]) -> None:
    otel_llm.uninstrument()

    @otel_llm.measured()
    def generate() -> Iterator[int]:
        yield 1

    with otel_llm.request() as r:
        r.tokens(1)
    assert list(generate()) == [1]
    assert seen == []


class Asked(Recording):
    engine, operation = "vllm", "chat"


def inner(model: str = "m", **marks: Any) -> None:
    """What an engine's hook does inside a hand-marked request."""
    live = outlet.active
    assert live is not None
    one = Asked(live.emit, live.capture())
    one.model = model
    now = time.monotonic_ns()
    stamps = {"submitted": now, "scheduled": now + 1, "first_token": now + 2, "last_token": now + 3, "output_tokens": 2}
    one.close("ok", None, ended=now + 4, **{**stamps, **marks})


def test_an_engine_inside_is_part_of_the_request_and_not_counted_again(seen: list[Timeline]) -> None:
    with otel_llm.request():
        inner()
    (request,) = seen
    assert (request.engine, request.operation, request.model, request.output_tokens) == ("vllm", "chat", "m", 2)
    assert [phase.name for phase in request.phases()] == ["preprocess", "queue", "prefill", "decode", "postprocess"]
    assert_adds_up(request)


def test_what_is_marked_by_hand_counts_before_the_engines_stamps(seen: list[Timeline]) -> None:
    with otel_llm.request(model="mine") as r:
        inner()
        r.tokens(7)
        inner("other")
    (request,) = seen
    assert (request.engine, request.model, request.output_tokens) == ("custom", "mine", 7)
    assert [child.model for child in request.children] == ["m", "other"]
    assert_adds_up(request)


def test_an_engine_that_goes_on_after_the_block_is_a_request_of_its_own(seen: list[Timeline]) -> None:
    live = outlet.active
    assert live is not None
    with otel_llm.request(model="mine"):
        context = live.capture()
    late = Asked(live.emit, context)
    late.model = "late"
    late.close("ok", None)
    inner("after")
    assert [request.model for request in seen] == ["mine", "late", "after"]


def test_a_hand_marked_request_inside_another_is_part_of_it(seen: list[Timeline]) -> None:
    with otel_llm.request(), otel_llm.request(model="within"):
        inner()
    (request,) = seen
    assert request.model == "within"
