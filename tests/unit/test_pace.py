"""How long the pipeline's threads nap between two pieces of their work."""

from __future__ import annotations

import threading
import time

import pytest

from otel_llm.pipeline import pace
from otel_llm.pipeline.pace import Pace


class Machine:
    """A clock that sleeping moves on, and what else keeps the sleeper from going on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.others, self.naps = 100.0, 0.0, list[float]()
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pace.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds + self.others


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_naps_are_long_while_others_hold_the_interpreter(machine: Machine) -> None:
    own = Pace()
    for machine.others in (0.0, 0.0004, 0.003, 0.005, 0.0, 0.0):
        own.nap(hurry=False)
    short, long = 0.0002, 0.01
    assert machine.naps == [short, short, short, long, long, short]


def test_whoever_has_too_much_to_do_naps_shortly(machine: Machine) -> None:
    own = Pace()
    machine.others = 0.005
    for hurry in (False, True, False):
        own.nap(hurry=hurry)
    assert machine.naps == [0.0002, 0.0002, 0.01]


def test_a_thread_that_computes_is_interrupted_rarely() -> None:
    """The real interpreter: it lets a thread that never waits compute for 5 ms before another gets in between."""
    over, found = threading.Event(), list[float]()

    def compute() -> None:
        while not over.is_set():
            pass

    def napped() -> float:
        own, naps, begin = Pace(), 20, time.perf_counter()
        for _ in range(naps):
            own.nap(hurry=False)
        return (time.perf_counter() - begin) / naps

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        found.append(napped())
    finally:
        over.set()
        busy.join()
    assert found[0] > 0.0095 + 0.001  # one nap of twenty is short, and all wait for the interpreter
