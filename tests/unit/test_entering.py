"""What enters a call and leaves it, at methods that every request comes by."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from otel_llm import faults
from otel_llm.calls import Enter, Leave
from otel_llm.patching import Engine, Hook, Patcher

HOST = "otel_llm_fake_host"


class Base:
    def inherited(self, a: int, b: int = 2) -> Any:
        return a, b


class Host(Base):
    def method(self, a: int, *, b: int = 2) -> Any:
        return a, b

    def fails(self, a: int) -> None:
        raise KeyError("the host's own")


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    module = types.ModuleType(HOST)
    module.Host = Host  # type: ignore[attr-defined]
    sys.modules[HOST] = module
    yield
    del sys.modules[HOST]


def patched(name: str, enter: Enter) -> Patcher:
    row = Engine("fake", HOST, (HOST,), lambda _probe: (Hook((f"{HOST}:Host.{name}",), enter=enter),))
    armed = Patcher(row, lambda _said: None, lambda _headers=None: None, lambda: False)
    armed.arm()
    return armed


@pytest.mark.parametrize("name", ["inherited", "method"])
def test_it_sees_arguments_by_name_and_undo_is_exact(name: str) -> None:
    own, seen = vars(Host).get(name), list[Any]()

    def enter(host: Host, given: Mapping[str, Any], kwargs: dict[str, Any]) -> None:
        seen.append((host, dict(given), dict(kwargs)))

    armed, here = patched(name, enter), Host()
    assert getattr(here, name)(1, b=3) == (1, 3)
    assert getattr(here, name)(a=4) == (4, 2)
    assert seen == [(here, {"a": 1, "b": 3}, {"b": 3}), (here, {"a": 4}, {"a": 4})]
    assert getattr(Host, name).__name__ == name
    armed.undo()
    assert vars(Host).get(name) is own


def test_what_it_returns_is_told_the_end_of_that_call() -> None:
    order: list[Any] = []

    def enter(host: Host, given: Mapping[str, Any], _kwargs: object) -> Leave | None:
        order.append(("enter", given["a"]))
        return (lambda value, error: order.append(("leave", given["a"], value, error))) if given["a"] else None

    armed = patched("method", enter)
    assert [Host().method(1), Host().method(0)] == [(1, 2), (0, 2)]
    armed.undo()
    assert order == [("enter", 1), ("leave", 1, (1, 2), None), ("enter", 0)]


def test_an_argument_and_a_result_can_be_replaced() -> None:
    def enter(_host: object, _given: object, kwargs: dict[str, Any]) -> Leave:
        kwargs["b"] = 9
        return lambda value, _error: [value]

    armed = patched("method", enter)
    assert Host().method(1, b=3) == [(1, 9)]
    armed.undo()


def test_an_exception_of_the_host_is_seen_and_kept_by_nobody() -> None:
    seen: list[Any] = []

    class Argument:
        pass

    def enter(_host: object, given: Mapping[str, Any], _kwargs: object) -> Leave:
        return lambda value, error: seen.append((value, type(error), type(given["a"])))

    armed, argument = patched("fails", enter), Argument()
    gone = weakref.ref(argument)
    gc.disable()
    try:
        with pytest.raises(KeyError, match="the host's own"):
            Host().fails(argument)  # type: ignore[arg-type]
        del argument
        assert gone() is None
    finally:
        gc.enable()
        armed.undo()
    assert seen == [(None, KeyError, Argument)]


@pytest.mark.expects_faults
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_in_it_changes_nothing_and_many_switch_it_off(when: str, no_hidden_error: list[Any]) -> None:
    """Seen to fail without the handlers of ``calls.entering``, and without its look at the breaker."""

    def fail(*_: object) -> Any:
        raise RuntimeError("ours")

    def enter(_host: object, _given: object, _kwargs: object) -> Leave:
        return fail

    wrong = fail if when == "before" else enter
    armed, more = patched("method", wrong), patched("fails", wrong)
    with pytest.raises(KeyError, match="the host's own"):
        Host().fails(1)
    for _ in range(faults.BREAKER_LIMIT + 5):
        assert Host().method(1) == (1, 2)
    assert armed.breaker.seen == faults.BREAKER_LIMIT
    assert [place for place, _ in no_hidden_error[:2]] == ["fake.Host.fails", "fake.Host.method"]
    armed.undo()
    more.undo()
