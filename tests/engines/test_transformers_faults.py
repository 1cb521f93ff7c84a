"""
``model.generate`` from several threads at once while every hook of ours fails: nothing of it shows.

test_transformers_safety.py breaks the hooks of single calls, replacements and parts included.
"""

from __future__ import annotations

import logging
from concurrent import futures
from typing import Any

import pytest
import torch

from otel_llm import faults
from otel_llm.engines import _transformers_call as call_module
from otel_llm.engines.transformers import ENGINE
from tests.engines import tiny_transformers as tiny
from tests.engines.sabotage import POSITIONS, armed, fail

pytestmark = [pytest.mark.transformers, pytest.mark.expects_faults]
THREADS, CALLS = 4, 8
PARTS = ("__init__", "left", "settle")
"""Of a loop."""


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


@pytest.mark.parametrize("position", [*POSITIONS, *PARTS, "emit", "capture"])
def test_no_fault_of_ours_shows_under_load(
    model: tiny.SlowQwen2, expected: list[Any], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Tokens and exceptions of the callers, KeyboardInterrupt among them, are those of a process without us.

    Seen to fail without the handlers of calls.entering, before the call and after it.
    """
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    if position in PARTS:
        monkeypatch.setattr(call_module.Loop, position, fail)
    with armed(ENGINE, position) as patcher:
        assert load(model) == expected
        assert patcher.breaker.seen > 0


def test_hooks_that_keep_failing_switch_themselves_off(
    model: tiny.SlowQwen2, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail without Breaker.closed: errors went on."""
    with caplog.at_level(logging.WARNING, "otel_llm"), armed(ENGINE, POSITIONS[0]) as patcher:
        while patcher.breaker.closed:
            assert load(model) == expected
        seen = patcher.breaker.seen
        assert load(model) == expected
        assert patcher.breaker.seen == seen
    assert faults.BREAKER_LIMIT <= seen <= faults.BREAKER_LIMIT + 2 * THREADS, "one that ran already may still fail"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == f"otel_llm: {faults.BREAKER_LIMIT} errors, the hooks of transformers are switched off"
    assert torch.is_tensor(model.generate(tiny.prompt(), max_new_tokens=2))
