"""A value of this process alone: whoever comes in the middle of its building waits for nobody."""

from __future__ import annotations

import threading

import pytest

from otel_llm.pipeline import process
from otel_llm.pipeline.process import PerProcess


def test_a_finaliser_that_needs_what_its_thread_builds_is_refused() -> None:
    """Seen to hang with a lock that its owner cannot take again."""
    refused: list[str] = []

    def build() -> int:
        with pytest.raises(RuntimeError) as error:
            value.get()
        refused.append(str(error.value))
        return 7

    value = PerProcess(build)
    assert value.get() == value.get() == 7
    assert refused == ["asked for by whoever builds it"]


def test_one_that_could_not_be_built_is_built_by_the_next() -> None:
    outcomes: list[int | Exception] = [ZeroDivisionError(), 7]

    def build() -> int:
        found = outcomes.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    value = PerProcess(build)
    with pytest.raises(ZeroDivisionError):
        value.get()
    assert value.get() == 7


def test_the_end_waits_for_no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may wait for the thread that ends the process, in an import for instance. Seen to hang."""
    monkeypatch.setattr(process, "_PATIENCE", 0.01)
    begun, free = threading.Event(), threading.Event()

    def build() -> int:
        begun.set()
        free.wait()
        return 7

    value = PerProcess(build)
    builder = threading.Thread(target=value.get)
    builder.start()
    begun.wait()
    assert value.discard() is None
    free.set()
    builder.join()
    assert value.discard() == 7
    assert value.peek() is None


def test_one_that_another_has_replaced_is_not_forgotten_for_it() -> None:
    value = PerProcess(object)
    first = value.get()
    assert value.discard(first) is first
    second = value.get()
    assert value.discard(first) is None
    assert value.get() is second
    assert value.discard() is second
    assert value.get() is not second
