"""
``model.generate`` from several threads at once while every hook of ours fails: nothing of it shows.

test_transformers_safety.py breaks the hooks of single calls, replacements and parts included.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any

import pytest
import torch

from otel_llm import faults
from otel_llm.engines import _transformers_call as call_module
from otel_llm.engines.transformers import ENGINE
from otel_llm.patching import Call, Hook, Patcher, Probe, Returned
from tests.engines import tiny_transformers as tiny

pytestmark = [pytest.mark.transformers, pytest.mark.expects_faults]
THREADS, CALLS = 4, 8


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture(scope="module")
def expected(model: tiny.SlowQwen2) -> list[Any]:
    found = load(model)
    assert KeyboardInterrupt in found
    return found


def load(model: tiny.SlowQwen2) -> list[Any]:
    """What each caller saw: tokens, or the exception that its own streamer raised, in the order of the calls."""

    def one(number: int) -> Any:
        broken = {"streamer": tiny.Clock(3, KeyboardInterrupt())} if number % 4 == 3 else {}
        beams = {"num_beams": 2} if number % 4 == 1 else {}
        try:
            found = model.generate(tiny.prompt(1, 4 + number % 5), max_new_tokens=6 + number % 3, **beams, **broken)
            return found.tolist()
        except BaseException as error:
            return type(error)

    with futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(CALLS)))


def broken(position: str) -> Callable[[Probe], tuple[Hook, ...]]:
    def made(hook: Hook) -> Any:
        def body(call: Call) -> Generator[None, Returned, None]:
            if position == "before":
                raise RuntimeError(position)
            steps = hook.body(call)  # type: ignore[misc] # it has one
            next(steps)
            returned = yield
            with contextlib.suppress(StopIteration):
                steps.send(returned)
            if position == "after" or returned.error is not None:
                raise RuntimeError(position)

        return body

    def hooks(probe: Probe) -> tuple[Hook, ...]:
        if position in ("emit", "capture"):
            return ENGINE.hooks(probe._replace(**{position: fail}))
        if position == "in the loop":
            return ENGINE.hooks(probe)
        return tuple(dataclasses.replace(hook, body=made(hook)) if hook.body else hook for hook in ENGINE.hooks(probe))

    return hooks


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")


@contextlib.contextmanager
def armed(position: str) -> Iterator[Patcher]:
    engine = dataclasses.replace(ENGINE, hooks=broken(position))
    patcher = Patcher(engine, lambda _: None, lambda **_: None, lambda: None)
    patcher.arm()
    assert patcher.state == "applied"
    try:
        yield patcher
    finally:
        patcher.undo()


@pytest.mark.parametrize("position", ["before", "after", "while the host fails", "in the loop", "emit", "capture"])
def test_no_fault_of_ours_shows_under_load(
    model: tiny.SlowQwen2, expected: list[Any], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Tokens and exceptions of the callers, KeyboardInterrupt among them, are those of a process without us.

    Seen to fail without the ``except`` of patching._driver ("before") and of patching._resume ("after").
    """
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    if position == "in the loop":
        for name in ("step", "stamp", "counts"):
            if hasattr(call_module.Loop, name):
                monkeypatch.setattr(call_module.Loop, name, fail)
    with armed(position) as patcher:
        assert load(model) == expected
        assert patcher.breaker.seen > 0


def test_hooks_that_keep_failing_switch_themselves_off(
    model: tiny.SlowQwen2, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail without Breaker.closed: errors went on."""
    with caplog.at_level(logging.WARNING, "otel_llm"), armed("before") as patcher:
        while patcher.breaker.closed:
            assert load(model) == expected
        seen = patcher.breaker.seen
        assert load(model) == expected
        assert patcher.breaker.seen == seen
    assert faults.BREAKER_LIMIT <= seen <= faults.BREAKER_LIMIT + 2 * THREADS, "one that ran already may still fail"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == f"otel_llm: {faults.BREAKER_LIMIT} errors, the hooks of transformers are switched off"
    assert torch.is_tensor(model.generate(tiny.prompt(), max_new_tokens=2))
