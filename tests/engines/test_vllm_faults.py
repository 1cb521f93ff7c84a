"""
Real vLLM under load while every hook of ours fails: nothing of it shows.

test_vllm_async.py breaks the hooks one at a time, around single requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm import faults
from otel_llm.engine_state import Later
from otel_llm.engines._vllm_request import Request
from otel_llm.engines._vllm_sample import Sample
from otel_llm.engines.vllm import ENGINE
from tests.engines.sabotage import armed, fail
from tests.engines.vllm_live import POSITIONS, LiveEngine, prompt

pytestmark = [pytest.mark.vllm, pytest.mark.expects_faults]
REQUESTS = 30
PLACES = {
    "the stream": (Request, ("started", "item", "ended")),
    "the submission": (Request, ("attach",)),
    "the sample": (Sample, ("told", "finished", "timeline")),
    "the step": (Later, ("keep",)),
}


@pytest.fixture(scope="module")
def live(tiny_model: Path) -> Iterator[LiveEngine]:
    otel_llm.instrument(engines=["vllm"])
    engine = LiveEngine(tiny_model)
    otel_llm.uninstrument()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(live: LiveEngine) -> list[Any]:
    """What the callers see where nothing of ours is."""
    found = load(live)
    assert {"CancelledError", "GeneratorExit"} <= {seen for seen, _ in found}
    assert len({seen for seen, _ in found}) >= 5, "answered, cancelled, closed, refused, failed"
    return found


def load(live: LiveEngine) -> list[Any]:
    """How each request ended and the tokens that its caller got, all of them asked for at once."""

    async def one(number: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY if number % 6 == 5 else RequestOutputKind.DELTA
        words = 400 if number % 6 == 4 else 4 + number
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=16 + number % 6, output_kind=kind)
        tokens: list[int] = []
        stream = live.engine.generate(prompt(words), params, f"under load {number}")
        try:
            async for item in stream:
                tokens += item.outputs[0].token_ids
                if number % 6 < 3:
                    await LEAVE[number % 6](stream)
                    return "GeneratorExit", tokens
        except BaseException as error:
            return type(error).__name__, tokens
        return "answered", tokens

    async def all_at_once() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(REQUESTS))), 120)

    found = live.run(all_at_once())
    assert not live.engine.errored
    assert not live.engine.output_processor.request_states
    return found


async def _close(stream: Any) -> None:
    await stream.aclose()


async def _throw(stream: Any) -> None:
    await stream.athrow(KeyError("the caller's own"))


async def _cancel(stream: Any) -> None:
    task = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)
    task.cancel()
    await task


LEAVE = (_close, _throw, _cancel)


@pytest.mark.parametrize("position", [*POSITIONS, *PLACES, "emit", "capture"])  # vLLM raises from its streams
def test_no_fault_of_ours_shows_under_load(
    live: LiveEngine, expected: list[Any], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Tokens and exceptions of all callers are those of a process without us, and the engine lives.

    Seen to fail with the handlers of errors in calls.driver, calls._resume, calls.entering and streams.watched_async
    taken out, and with those of what takes the place of vLLM's functions.
    """
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    owner, names = PLACES.get(position, (None, ()))
    for name in names:
        monkeypatch.setattr(owner, name, fail)
    with armed(ENGINE, position) as patcher:
        assert load(live) == expected
        assert patcher.breaker.seen > 0
    assert load(live) == expected


def test_hooks_that_keep_failing_switch_themselves_off(
    live: LiveEngine, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And say so once, by themselves."""
    with caplog.at_level(logging.WARNING, "otel_llm"), armed(ENGINE, POSITIONS[0]) as patcher:
        while patcher.breaker.closed:
            assert load(live) == expected
        seen = patcher.breaker.seen
        assert load(live) == expected
        assert patcher.breaker.seen == seen
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == f"otel_llm: {faults.BREAKER_LIMIT} errors, the hooks of vllm are switched off"
