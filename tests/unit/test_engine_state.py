"""What engines say of themselves, from plain data to points, with a provider of our own and with a foreign one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.pipeline.bulk import BulkMeterProvider
from otel_llm.pipeline.exporters import Loss
from otel_llm.telemetry import engine as engine_metrics
from otel_llm.telemetry.recorder import Recorder


class Collected:
    """A recorder, and its points of engines as (name, attributes) -> value, or (count, sum)."""

    def __init__(self, *, own: bool) -> None:
        self._reader = InMemoryMetricReader()
        self.keys = set[tuple[Any, Any]]()
        provider = MeterProvider([self._reader])
        self._bulk = BulkMeterProvider(provider) if own else None
        self.recorder = Recorder(None, self._bulk or provider, loss=Loss() if own else None)

    def points(self) -> dict[tuple[str, tuple[Any, ...]], Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        if self._bulk is not None:
            data = self._bulk.complete(data)
        found = {}
        for scope in data.resource_metrics[0].scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if metric.name.startswith("otel_llm.engine."):
                        value = point.value if isinstance(point, NumberDataPoint) else (point.count, point.sum)
                        rest = dict(point.attributes or {})
                        index = rest.pop("otel_llm.engine.index")
                        if "otel_llm.engine.id" in rest:
                            self.keys.add((index, rest.pop("otel_llm.engine.id")))
                        key = (index, *(rest[key] for key in ("otel_llm.state", "otel_llm.phase") if key in rest))
                        found[metric.name.removeprefix("otel_llm.engine."), key] = value
        return found


@pytest.fixture(params=[True, False], ids=["own", "foreign"])
def collected(request: pytest.FixtureRequest) -> Collected:
    return Collected(own=request.param)


def state(**told: Any) -> EngineState:
    return EngineState(engine="vllm", model="m", **told)


def test_what_was_not_told_is_not_said(collected: Collected) -> None:
    collected.recorder.record(state(waiting=0, preemptions=0))
    assert collected.points() == {("requests", (0, "waiting")): 0, ("preemptions", (0,)): 0}
    collected.recorder.record(state())
    assert collected.points() == {("requests", (0, "waiting")): 0, ("preemptions", (0,)): 0}


def test_a_gauge_is_the_last_and_a_count_the_sum_per_engine(collected: Collected) -> None:
    for index, running, hits in ((0, 4, 10), (1, 7, 100), (0, 2, 5)):
        collected.recorder.record(state(rank=index, running=running, kv_cache_usage=0.25, prefix_cache_hits=hits))
    assert collected.points() == {
        ("requests", (0, "running")): 2,
        ("requests", (1, "running")): 7,
        ("kv_cache.usage", (0,)): 0.25,
        ("kv_cache.usage", (1,)): 0.25,
        ("prefix_cache.hits", (0,)): 15,
        ("prefix_cache.hits", (1,)): 100,
    }


@pytest.mark.parametrize("rank", [-(1 << 63) - 1, 1 << 63, 10**30])
def test_an_engine_whose_number_no_exporter_takes_is_left_out(rank: int, collected: Collected) -> None:
    """Seen to fail with such a label recorded: the encoder drops it, and the series of several engines are one."""
    collected.recorder.record(state(rank=rank, running=1))
    collected.recorder.record(EngineStep("vllm", "m", rank, 1, 1))
    assert collected.points() == {}


def test_steps_are_part_of_the_collection_that_follows(collected: Collected) -> None:
    collected.recorder.record(EngineStep("vllm", "m", 0, 3, 30, 28, 0.5))
    first = {
        ("batch.size", (0,)): (1, 3),
        ("step.tokens", (0,)): (1, 30),
        ("step.duration", (0,)): (1, 0.5),
        ("computed_tokens", (0, "prefill")): 28,
        ("computed_tokens", (0, "decode")): 2,
    }
    assert collected.points() == first
    assert collected.points() == first, "a step is recorded once"
    collected.recorder.record(EngineStep("vllm", "m", 0, 2, 2))
    assert collected.points() == {**first, ("batch.size", (0,)): (2, 5), ("step.tokens", (0,)): (2, 32)}


def test_what_makes_no_sense_is_left_out(collected: Collected) -> None:
    wrong: Any = [float("nan"), -1, True, "3", None, 1 << 70]
    for value in wrong:
        collected.recorder.record(state(running=value, kv_cache_usage=value, drafted=value))
        collected.recorder.record(EngineStep("vllm", "m", 0, value, value, value, value))
    collected.recorder.record(EngineStep("vllm", "m", 0, 1, 2, 3))
    assert collected.points() == {("batch.size", (0,)): (1, 1), ("step.tokens", (0,)): (1, 2)}


def test_what_others_may_have_been_told_since_is_not_said(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    collected.recorder.record(state(rank=0, running=3, prefix_cache_hits=1))
    collected.recorder.record(state(rank=1, running=3, prefix_cache_hits=1, shared="a1b2c"))
    assert {key for name, key in collected.points() if name == "requests"} == {(0, "running"), (1, "running")}
    now += engine_metrics.SHARED_SECONDS
    assert {key for name, key in collected.points() if name == "requests"} == {(0, "running")}
    assert collected.points()["prefix_cache.hits", (1,)] == 1, "counts add up, however old"
    collected.recorder.record(state(rank=1, running=0, shared="a1b2c"))
    assert collected.points()["requests", (1, "running")] == 0
    assert {index for index, key in collected.keys if key == "a1b2c"} == {1}
    assert {index for index, key in collected.keys if len(key) == 12} == {0}, "of this process"


def test_engines_and_steps_are_bounded(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_metrics, "ENGINE_LIMIT", 2)
    monkeypatch.setattr(engine_metrics, "STEP_LIMIT", 3)
    for index in range(4):
        collected.recorder.record(state(rank=index, running=1))
    for _ in range(5):
        collected.recorder.record(EngineStep("vllm", "m", 0, 1, 1))
    points = collected.points()
    assert {key for name, key in points if name == "requests"} == {(0, "running"), (1, "running")}
    assert points["batch.size", (0,)] == (3, 3)
