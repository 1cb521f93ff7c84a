"""What was told and is not recorded yet: nothing is lost, nothing twice, and nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_llm.pipeline import backlog
from otel_llm.pipeline.backlog import FOREVER, Backlog
from otel_llm.pipeline.bulk import BulkMeterProvider
from otel_llm.pipeline.providers import Pipeline


class Slow:
    """Records, but not while it is held."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.threads: set[str] = set()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, number: int) -> None:
        self.free.wait()
        self.threads.add(threading.current_thread().name)
        self.seen.append(number)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def lazy(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backlog[int]]:
    """Its thread comes only when it is called."""
    monkeypatch.setattr(backlog, "_SECONDS", 3600.0)
    made = Backlog(slow)
    yield made
    slow.free.set()
    made.close()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_nothing_is_recorded_by_whoever_tells_until_somebody_asks(lazy: Backlog[int], slow: Slow) -> None:
    for number in range(backlog.BATCH - 1):
        lazy.put(number)
    assert slow.seen == []
    lazy.drain(FOREVER)
    assert slow.seen == list(range(backlog.BATCH - 1))


def test_a_batch_is_recorded_in_a_thread_of_its_own(lazy: Backlog[int], slow: Slow) -> None:
    for number in range(backlog.BATCH):
        lazy.put(number)
    until(lambda: len(slow.seen) == backlog.BATCH)
    assert slow.threads == {"otel-llm-records"}


def test_a_single_one_does_not_wait_for_others(slow: Slow) -> None:
    made = Backlog(slow)
    made.put(7)
    until(lambda: slow.seen == [7])
    made.close()


def test_nobody_who_tells_waits_long_for_one_that_records(lazy: Backlog[int], slow: Slow) -> None:
    slow.free.clear()
    for number in range(backlog.FULL + 50):  # the thread holds the lock, and is stuck
        lazy.put(number)
        if number == backlog.BATCH:
            until(lazy._lock.locked)
    slow.free.set()
    lazy.drain(FOREVER)
    assert slow.seen == list(range(backlog.FULL + 50))


def test_who_finds_it_full_records(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backlog, "_run", lambda _: None)  # the thread has died, or has no processor
    made = Backlog(slow)
    for number in range(3 * backlog.FULL):
        made.put(number)
        assert len(made._waiting) < backlog.FULL
    made.drain(FOREVER)
    assert slow.seen == list(range(3 * backlog.FULL))
    assert slow.threads == {"MainThread"}


def test_no_more_wait_than_that_although_they_come_faster_than_they_are_recorded() -> None:
    """Seen to fail with a thread that keeps the lock while it lets others run: 17,920 of 20,000 waited."""

    def record(_: int) -> None:
        until = time.thread_time() + 0.00005
        while time.thread_time() < until:
            pass

    made, most = Backlog(record), 0
    for number in range(20_000):
        made.put(number)
        most = max(most, len(made._waiting))
    made.close()
    assert most < 2 * backlog.FULL


@pytest.mark.parametrize(("each", "piece"), [(0.0, 100), (2**-13, 9), (2**-6, 1)])
def test_the_thread_lets_others_run_after_a_piece(each: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long one takes. Seen to fail with pieces of a fixed number."""
    monkeypatch.setattr(Backlog, "_run", lambda _: None)
    now, pieces = 0.0, [0]
    monkeypatch.setattr(backlog.time, "monotonic", lambda: now)

    def record(_: int) -> None:
        nonlocal now
        now += each
        pieces[-1] += 1

    made = Backlog(record)
    for number in range(100):
        made.put(number)
    while made._waiting:
        made._work(FOREVER, backlog._PIECE)
        pieces.append(0)
    assert pieces == [piece] * (100 // piece) + ([100 % piece] if 100 % piece else []) + [0]


def test_what_is_told_after_the_end_is_recorded_at_once(lazy: Backlog[int], slow: Slow) -> None:
    lazy.put(1)
    lazy.close()
    lazy.put(2)
    assert slow.seen == [1, 2]


def test_what_is_told_after_the_end_while_another_records_is_not_forgotten(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail without the second look of whoever records."""
    monkeypatch.setattr(Backlog, "_run", lambda _: None)
    made = Backlog(slow)
    slow.free.clear()
    made.put(1)
    ending = threading.Thread(target=made.close)
    ending.start()
    until(lambda: made._lock.locked() and not made._waiting)
    made.put(2)
    slow.free.set()
    ending.join()
    assert slow.seen == [1, 2]


@pytest.mark.parametrize("closed", [False, True])
def test_a_finaliser_may_tell_while_its_own_thread_records(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs where it likes. Seen to hang with a lock that ``put`` waits for."""
    monkeypatch.setattr(backlog, "FULL", 2)
    monkeypatch.setattr(Backlog, "_run", lambda _: None)
    seen: list[int] = []

    def record(number: int) -> None:
        if number < 10:
            made.put(number + 10)
        seen.append(number)

    made = Backlog(record)
    if closed:
        made.close()
    for number in range(4):
        made.put(number)
    made.drain(FOREVER)
    made.drain(FOREVER)  # what was told during the first
    assert sorted(seen) == [0, 1, 2, 3, 10, 11, 12, 13]


def test_who_asks_in_the_middle_of_its_own_recording_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a log handler that calls ``status()``. Seen to hang with FOREVER."""
    monkeypatch.setattr(Backlog, "_run", lambda _: None)
    seen: list[int] = []

    def record(number: int) -> None:
        made.drain(0.01)
        seen.append(number)

    made = Backlog(record)
    made.put(1)
    made.put(2)
    made.drain(FOREVER)
    assert seen == [1, 2]


@pytest.mark.expects_faults
def test_an_error_costs_one(no_hidden_error: list[tuple[str, Exception]]) -> None:
    seen: list[int] = []

    def record(number: int) -> None:
        if number == 1:
            raise RuntimeError("ours")
        seen.append(number)

    made = Backlog(record)
    for number in range(3):
        made.put(number)
    made.close()
    assert seen == [0, 2]
    assert [place for place, _ in no_hidden_error] == ["emit"]


def test_many_threads_lose_nothing(slow: Slow) -> None:
    made = Backlog(slow)
    tellers = [
        threading.Thread(target=lambda first=first: [made.put(first + n) for n in range(5000)])  # type: ignore[misc]
        for first in range(0, 20_000, 5000)
    ]
    for teller in tellers:
        teller.start()
    while any(teller.is_alive() for teller in tellers):
        made.drain(FOREVER)
    made.close()
    assert sorted(slow.seen) == list(range(20_000))
    for first in range(0, 20_000, 5000):
        mine = [number for number in slow.seen if first <= number < first + 5000]
        assert mine == sorted(mine), "each in its order"


def test_a_collection_has_what_was_told_before_it() -> None:
    reader = InMemoryMetricReader()
    waiting = [3]
    provider = BulkMeterProvider(MeterProvider([reader]), lambda: [counter.add(n) for n in waiting] and waiting.clear())
    meter = provider.get_meter("scope")
    counter = meter.create_counter("counted")
    meter.create_observable_gauge("asked", [lambda _: []])
    meter.create_observable_counter("always", [lambda _: [_observation()]])
    data = reader.get_metrics_data()
    assert data is not None
    metrics = provider.complete(data).resource_metrics[0].scope_metrics[0].metrics
    points = {metric.name: list(metric.data.data_points) for metric in metrics}
    assert getattr(points["counted"][0], "value", None) == 3


def _observation() -> Any:
    from opentelemetry.metrics import Observation

    return Observation(1)


@pytest.mark.parametrize("end", ["flush", "shutdown"])
def test_a_pipeline_that_ends_has_recorded_all(end: str, monkeypatch: pytest.MonkeyPatch, slow: Slow) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    pipeline = Pipeline("tested", frozenset({"metrics"}))
    put = pipeline.deferring(slow)
    put(1)
    getattr(pipeline, end)()
    assert slow.seen == [1]
    pipeline.shutdown()
