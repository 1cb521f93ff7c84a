"""Device timing: how long the host waited for a device that exists only as a clock, in known amounts."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, StoppingCriteriaList

from otel_llm.engines import _transformers_device as device_module
from otel_llm.testing import assert_adds_up
from tests.engines import tiny_transformers as tiny

WAITS = "otel_llm.device.wait.prefill", "otel_llm.device.wait.decode"


class Accelerator:
    """It is busy until a moment that each forward moves on; the host waits for it where a real one would."""

    def __init__(self) -> None:
        self.busy_until = 0
        self.waited: list[float] = []
        """Seconds that the host waited, per step: the truth."""

    def works(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, time.monotonic_ns()) + round(seconds * 1e9)

    def synchronise(self) -> None:
        begin = time.monotonic_ns()
        left = self.busy_until - begin
        if left > 0:
            time.sleep(left / 1e9)
        self.waited.append((time.monotonic_ns() - begin) / 1e9)


class Event:
    """``torch.Event``: it happens when all work that was launched before it is done."""

    accelerator: Accelerator
    alive = 0
    most_alive = 0
    foreign_work = False

    def __init__(self, *, device: Any, enable_timing: bool) -> None:
        assert enable_timing
        self.happens: int | None = None
        Event.alive += 1
        Event.most_alive = max(Event.most_alive, Event.alive)

    def __del__(self) -> None:
        Event.alive -= 1

    def record(self) -> None:
        self.happens = max(time.monotonic_ns(), self.accelerator.busy_until)

    def query(self) -> bool:
        return not self.foreign_work and self.happens is not None and self.happens <= time.monotonic_ns()

    def elapsed_time(self, other: Event) -> float:
        assert self.query()
        assert other.query()
        assert self.happens is not None
        assert other.happens is not None
        return (other.happens - self.happens) / 1e6

    def synchronize(self) -> None:
        raise AssertionError("nothing may wait for an event")


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    """A device whose work takes known times, below the model that the CPU really runs."""
    made = Accelerator()
    monkeypatch.setattr(Event, "accelerator", made, raising=False)
    monkeypatch.setattr(torch, "Event", Event)
    original, judge, judged = GenerationMixin._has_unfinished_sequences, StoppingCriteriaList.__call__, []

    @functools.wraps(original)
    def waits(self: Any, *args: Any, **kwargs: Any) -> bool:
        if judged:  # there is a result to wait for
            judged.clear()
            made.synchronise()
        return original(self, *args, **kwargs)

    @functools.wraps(judge)
    def judges(self: Any, *args: Any, **kwargs: Any) -> Any:
        judged.append(True)
        return judge(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_has_unfinished_sequences", waits)
    monkeypatch.setattr(StoppingCriteriaList, "__call__", judges)
    device_module._events.cache_clear()
    yield made
    device_module._events.cache_clear()


class OnDevice(tiny.SlowQwen2):
    """Each forward launches work: ``seconds[0]`` for the prompt, ``seconds[1]`` for a token."""

    accelerator: Accelerator
    seconds = (0.0, 0.0)

    @functools.wraps(tiny.SlowQwen2.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        width = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]
        self.accelerator.works(self.seconds[0 if width > 1 else 1])
        return super().forward(*args, **kwargs)


@pytest.fixture
def model(accelerator: Accelerator) -> OnDevice:
    made = OnDevice(tiny.qwen2().config).eval()
    made.accelerator = accelerator
    made.generate(tiny.prompt(), max_new_tokens=2)  # without the first call's set-up
    accelerator.waited.clear()
    return made


def test_a_slow_device_makes_the_host_wait(model: OnDevice, accelerator: Accelerator) -> None:
    model.seconds = 0.2, 0.05
    with tiny.watched(False, True) as seen:
        model.generate(tiny.prompt(), max_new_tokens=6)
    (timeline,) = seen
    assert_adds_up(timeline)
    first, *others = accelerator.waited
    assert len(others) == 5
    prefill, decode = (timeline.attributes[name] for name in WAITS)
    assert prefill == pytest.approx(first, abs=0.005)
    assert decode == pytest.approx(sum(others), abs=0.005 * len(others))
    assert 0 < prefill < 0.2, "the host was at work for a part of it"
    assert 0 < decode < 0.25


def test_a_slow_host_does_not_wait(model: OnDevice, accelerator: Accelerator) -> None:
    model.seconds = 0.01, 0.01
    model.delays = [0.05]
    with tiny.watched(False, True) as seen:
        model.generate(tiny.prompt(), max_new_tokens=6)
    (timeline,) = seen
    assert [timeline.attributes[name] for name in WAITS] == [0.0, 0.0]
    assert sum(phase.duration for phase in timeline.phases()) > 0.3e9


def test_events_are_let_go_in_long_calls(model: OnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "READ_EVERY", 8)
    model.seconds = 0.02, 0.004
    Event.alive = Event.most_alive = 0
    with tiny.watched(False, True) as seen:
        model.generate(tiny.prompt(), max_new_tokens=60)
    assert Event.most_alive < 25
    assert 0.0 < float(seen[0].attributes[WAITS[1]]) < 60 * 0.004


def test_what_is_not_known_is_absent(model: OnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    model.seconds = 0.01, 0.01
    with tiny.watched(False, True) as seen:
        model.generate(tiny.prompt(), max_new_tokens=3, num_beams=2)
        model.generate(tiny.prompt(), max_new_tokens=1)
        monkeypatch.setattr(Event, "foreign_work", True)
        model.generate(tiny.prompt(), max_new_tokens=3)
    beams, one, disturbed = seen
    assert beams.attributes == disturbed.attributes == {}
    assert set(one.attributes) == {WAITS[0]}, "one token has no decode"


def test_it_is_off_unless_asked_for(model: OnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("an event was recorded")

    monkeypatch.setattr(Event, "record", fail)
    with tiny.watched() as seen:
        model.generate(tiny.prompt(), max_new_tokens=3)
    assert seen[0].attributes == {}


def test_the_cpu_has_no_events() -> None:
    device_module._events.cache_clear()
    assert device_module.of(tiny.qwen2()) is None
    with tiny.watched(False, True) as seen:
        tiny.qwen2().generate(tiny.prompt(), max_new_tokens=3)
    assert seen[0].attributes == {}


def test_the_variable_reaches_the_hooks(model: OnDevice, monkeypatch: pytest.MonkeyPatch, instrumented: None) -> None:
    import otel_llm
    from otel_llm.testing import recording

    monkeypatch.setenv("OTEL_LLM_DEVICE_TIMING", "1")
    model.seconds = 0.03, 0.03
    otel_llm.instrument(engines=["transformers"])
    with recording() as seen:
        model.generate(tiny.prompt(), max_new_tokens=3)
    assert set(WAITS) == set(seen[0].attributes)
