"""A watched generator is, to its caller, the generator itself; and its watcher is told of its end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from otel_llm.streams import watched, watched_async


class Told:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def started(self) -> None:
        self.said.append("started")

    def item(self, value: Any) -> None:
        self.said.append(value)

    def ended(self, error: BaseException | None) -> None:
        self.said.append(error if error is None else type(error).__name__)


def talk(log: list[Any]) -> Generator[Any, Any, str]:
    """Shows what is done to it."""
    try:
        for number in range(4):
            try:
                log.append((yield number))
            except KeyError as thrown:
                log.append(repr(thrown))
                log.append((yield "caught"))
    finally:
        log.append("closed")
    return "result"


async def talk_async(log: list[Any]) -> AsyncGenerator[Any, Any]:
    try:
        for number in range(4):
            try:
                log.append((yield number))
            except KeyError as thrown:
                log.append(repr(thrown))
                log.append((yield "caught"))
    finally:
        await asyncio.sleep(0)
        log.append("closed")


SCRIPTS: dict[str, list[tuple[str, Any]]] = {
    "all": [("next", None)] * 5,
    "sent": [("next", None), ("send", "a"), ("next", None), ("send", "b"), ("send", "c")],
    "thrown and caught": [("next", None), ("throw", KeyError("k")), ("next", None), ("send", "x"), ("next", None)],
    "thrown and not caught": [("next", None), ("throw", ValueError("v")), ("next", None)],
    "cancelled": [("next", None), ("throw", asyncio.CancelledError()), ("next", None)],
    "closed": [("next", None), ("close", None), ("next", None), ("close", None)],
    "closed before": [("close", None), ("next", None)],
    "thrown before": [("throw", ValueError("v")), ("next", None)],
    "sent before": [("send", "x")],
}
ENDS = {
    "all": ["started", 0, 1, 2, 3, None],
    "sent": ["started", 0, 1, 2, 3, None],
    "thrown and caught": ["started", 0, "caught", 1, 2, 3, "GeneratorExit"],  # dropped before its end
    "thrown and not caught": ["started", 0, "ValueError"],
    "cancelled": ["started", 0, "CancelledError"],
    "closed": ["started", 0, "GeneratorExit"],
    "closed before": [],
    "thrown before": [],
    "sent before": [],
}


def run(stream: Generator[Any, Any, Any], script: list[tuple[str, Any]]) -> list[Any]:
    seen: list[Any] = []
    for act, value in script:
        try:
            method = getattr(stream, {"next": "__next__"}.get(act, act))
            seen.append(method() if value is None else method(value))
        except BaseException as error:
            seen.append((type(error), str(error), getattr(error, "value", None)))
    return seen


async def run_async(stream: AsyncGenerator[Any, Any], script: list[tuple[str, Any]]) -> list[Any]:
    seen: list[Any] = []
    for act, value in script:
        try:
            method = getattr(stream, {"next": "__anext__"}.get(act, "a" + act))
            seen.append(await (method() if value is None else method(value)))
        except BaseException as error:
            seen.append((type(error), str(error)))
    return seen


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_caller_sees_the_generator_itself(name: str) -> None:
    plain: list[Any] = []
    inside: list[Any] = []
    told = Told()
    assert run(watched(talk(inside), told), SCRIPTS[name]) == run(talk(plain), SCRIPTS[name])
    assert inside == plain
    assert list(dict.fromkeys(told.said)) == ENDS[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_caller_sees_the_asynchronous_generator_itself(name: str) -> None:
    plain: list[Any] = []
    inside: list[Any] = []
    told = Told()

    async def both() -> None:
        found = await run_async(watched_async(talk_async(inside), told), SCRIPTS[name])
        assert found == await run_async(talk_async(plain), SCRIPTS[name])

    asyncio.run(both())
    assert inside == plain
    assert list(dict.fromkeys(told.said)) == ENDS[name]


def test_one_that_is_dropped_is_closed() -> None:
    told, log = Told(), list[Any]()
    stream = watched(talk(log), told)
    next(stream)
    del stream
    assert log == ["closed"]
    assert list(dict.fromkeys(told.said)) == ["started", 0, "GeneratorExit"]


def test_an_asynchronous_one_that_is_dropped_is_closed() -> None:
    told, log = Told(), list[Any]()

    async def drop() -> None:
        stream = watched_async(talk_async(log), told)
        await stream.__anext__()
        del stream
        gc.collect()
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(drop())
    assert log == ["closed"]
    assert told.said[:3] == ["started", 0, "GeneratorExit"]


class Failing:
    def started(self) -> None:
        raise RuntimeError

    def item(self, value: Any) -> None:
        raise RuntimeError

    def ended(self, error: BaseException | None) -> None:
        raise RuntimeError


@pytest.mark.expects_faults
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_watcher_that_fails_changes_nothing(name: str) -> None:
    swallowed: list[str] = []

    def swallow(place: str, error: Exception) -> None:
        swallowed.append(place)

    assert run(watched(talk([]), Failing(), swallow), SCRIPTS[name]) == run(talk([]), SCRIPTS[name])

    async def both() -> None:
        found = await run_async(watched_async(talk_async([]), Failing(), swallow), SCRIPTS[name])
        assert found == await run_async(talk_async([]), SCRIPTS[name])

    asyncio.run(both())
    assert bool(swallowed) is bool(ENDS[name])
