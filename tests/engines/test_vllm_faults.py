"""
Real vLLM under load while every hook of ours fails at once, in every position.

The answers stay the same to the byte, nobody hangs, whoever gives up sees the exception that it always saw, the
engine lives, each error is counted, and after too many of them the hooks switch themselves off and say so.
test_vllm_async.py breaks the same hooks one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm import faults, instrumentation
from otel_llm.engines import _vllm_request, vllm
from otel_llm.patching import Call, Hook, Patcher, Probe, Returned
from otel_llm.testing import recording
from tests.engines.vllm_live import LiveEngine, prompt

pytestmark = [pytest.mark.vllm, pytest.mark.expects_faults]
SECONDS = 60
"""Nothing of the load takes a tenth of it: who is not through by then hangs."""


@pytest.fixture(scope="module")
def live(tiny_model: Path) -> Iterator[LiveEngine]:
    otel_llm.instrument(engines=["vllm"])
    engine = LiveEngine(tiny_model)
    yield engine
    engine.close()
    otel_llm.uninstrument()


async def load(live: LiveEngine) -> dict[str, str]:
    """Twenty answers at once, while four others are given up in as many ways; what each caller saw."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    seen: dict[str, str] = {}

    async def full(number: int) -> None:
        answer = await live.ask(f"full-{number}", words=4 + number, stream=number % 2 == 0, max_tokens=8 + number)
        seen[answer.request_id] = f"{answer.text} {answer.finish_reasons} {answer.output_tokens}"

    async def given_up(way: str) -> None:
        stream = live.engine.generate(prompt(6), params, way)
        try:
            async for _ in stream:
                if way == "aclose":
                    await stream.aclose()
                    return
                if way == "break":
                    return
                if way == "throw":
                    await stream.athrow(KeyError("of the caller"))
                await asyncio.sleep(0)
        except BaseException as error:
            seen[way] = type(error).__name__
            raise

    async def cancelled() -> None:
        task = asyncio.create_task(given_up("cancel"))
        await asyncio.sleep(0.3)
        task.cancel()
        await task

    async def refused() -> None:
        try:
            await live.ask("refused", words=4000, max_tokens=4)
        except ValueError as error:
            seen["refused"] = str(error)

    work = [*map(full, range(20)), *map(given_up, ("aclose", "break", "throw")), cancelled(), refused()]
    ends = await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), SECONDS)
    seen["ends"] = str([type(end).__name__ for end in ends if end is not None])
    return seen


@pytest.fixture(scope="module")
def healthy(live: LiveEngine) -> dict[str, str]:
    found = live.run(load(live))
    assert live.run(load(live)) == found, "the engine itself must answer the same each time"
    assert found["ends"] == "['KeyError', 'CancelledError']"
    assert found["cancel"] == "CancelledError"
    return found


Sabotage = Callable[[pytest.MonkeyPatch], Callable[[Probe], tuple[Hook, ...]]]


def broken_bodies(body: Callable[[Hook], Any]) -> Sabotage:
    """Every hook that has a body gets this one."""

    def hooks(probe: Probe) -> tuple[Hook, ...]:
        return tuple(replace(hook, body=body(hook)) if hook.body else hook for hook in vllm.ENGINE.hooks(probe))

    return lambda _patch: hooks


def before(_hook: Hook) -> Any:
    def body(_call: Call) -> Generator[None, Returned, None]:
        raise RuntimeError("before the call")
        yield

    return body


def after(hook: Hook) -> Any:
    def body(call: Call) -> Generator[None, Returned, None]:
        steps = hook.body(call)  # type: ignore[misc] # it has one
        next(steps)
        returned = yield
        with contextlib.suppress(StopIteration):
            steps.send(returned)
        raise RuntimeError("after the call")

    return body


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")


def in_a_generator(*methods: str) -> Sabotage:
    """What the watched stream tells fails: at the first item, at each, at the end."""

    def apply(patch: pytest.MonkeyPatch) -> Callable[[Probe], tuple[Hook, ...]]:
        for method in methods:
            patch.setattr(_vllm_request.Request, method, fail)
        return vllm.ENGINE.hooks

    return apply


def during_cancel(patch: pytest.MonkeyPatch) -> Callable[[Probe], tuple[Hook, ...]]:
    """Only while CancelledError, GeneratorExit or another exception of the host passes."""
    original = _vllm_request.Request.ended

    def ended(self: Any, error: BaseException | None) -> None:
        if error is not None:
            raise RuntimeError("during cancel") from error
        original(self, error)

    patch.setattr(_vllm_request.Request, "ended", ended)
    return vllm.ENGINE.hooks


def probe_broken(part: str) -> Sabotage:
    """What the hooks are given fails: although it promises never to raise."""
    return lambda _patch: lambda probe: vllm.ENGINE.hooks(probe._replace(**{part: fail}))


POSITIONS: dict[str, Sabotage] = {
    "before": broken_bodies(before),
    "after": broken_bodies(after),
    "in a generator, at its start": in_a_generator("started"),
    "in a generator, at each item": in_a_generator("item"),
    "in a generator, everywhere": in_a_generator("started", "item", "ended"),
    "during cancel": during_cancel,
    "in emit": probe_broken("emit"),
    "in capture": probe_broken("capture"),
}
FREQUENT = {
    "AsyncLLM.generate",
    "OutputProcessor.add_request",
    "OutputProcessor._update_stats_from_finished",
    "OutputProcessor.abort_requests",
    "IterationStats.update_from_events",
    "StatLoggerManager.record",
}
"""Hooks that the load comes by."""


@contextlib.contextmanager
def broken(sabotage: Sabotage) -> Iterator[Patcher]:
    """These hooks instead of the healthy ones."""
    otel_llm.uninstrument()
    with pytest.MonkeyPatch.context() as patch:
        engine = replace(vllm.ENGINE, hooks=sabotage(patch))
        patcher = Patcher(engine, instrumentation.emit, lambda *_, **__: None, lambda: False)
        patcher.arm()
        assert patcher.state == "applied"
        try:
            yield patcher
        finally:
            patcher.undo()
    otel_llm.instrument(engines=["vllm"])


@pytest.mark.parametrize("position", POSITIONS)
def test_no_fault_of_ours_shows_under_load(
    live: LiveEngine, healthy: dict[str, str], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Seen to fail without the ``except`` of patching._driver ("before": nothing was answered), of
    patching._resume ("after": the callers got our RuntimeError) and of streams (the generators).
    """
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    with broken(POSITIONS[position]) as patcher:
        assert live.run(load(live)) == healthy
        assert not live.engine.errored
        assert patcher.breaker.seen > 0
        assert sum(faults.errors.values()) >= patcher.breaker.seen
        if position in ("before", "after"):
            places = {place.removeprefix("vllm.") for place in faults.errors}
            assert places >= FREQUENT
    with recording() as timelines:
        assert live.run(load(live)) == healthy, "the hooks that come after are whole"
    assert not live.engine.output_processor.request_states
    assert len(timelines) == 25


@pytest.mark.parametrize("position", ["before", "after", "in a generator, everywhere"])
def test_hooks_that_keep_failing_switch_themselves_off(
    live: LiveEngine, healthy: dict[str, str], position: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail without Breaker.closed: errors went on for as long as the load did."""
    with caplog.at_level(logging.WARNING, "otel_llm"), broken(POSITIONS[position]) as patcher:
        for _ in range(8):
            assert live.run(load(live)) == healthy
            if not patcher.breaker.closed:
                break
        assert not patcher.breaker.closed
        seen = patcher.breaker.seen
        assert live.run(load(live)) == healthy
        assert patcher.breaker.seen == seen, "not one more"
        said = instrumentation._hooks_of(patcher)
        assert (said.state, said.reason) == ("failed", f"switched off after {seen} errors")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == f"otel_llm: {faults.BREAKER_LIMIT} errors, the hooks of vllm are switched off"
    assert len(caplog.records) < 20, "at most one line per place"
