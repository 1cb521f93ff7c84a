"""A look before a call and one after it, at methods that every request or step comes by."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from otel_llm import faults
from otel_llm.calls import Call, Look
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


def patched(name: str, before: Look | None = None, after: Look | None = None) -> Patcher:
    row = Engine("fake", HOST, (HOST,), lambda _probe: (Hook((f"{HOST}:Host.{name}",), before=before, after=after),))
    armed = Patcher(row, lambda _said: None, lambda _headers=None: None, lambda: False)
    armed.arm()
    return armed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["inherited", "method"])
def test_it_sees_arguments_by_name_and_undo_is_exact(name: str, when: str) -> None:
    own, seen = vars(Host).get(name), list[Any]()

    def look(call: Call) -> None:
        seen.append((call.instance, call.get("a"), call.get("b", "absent")))

    armed, here = patched(name, **{when: look}), Host()
    assert getattr(here, name)(1, b=3) == (1, 3)
    assert getattr(here, name)(a=4) == (4, 2)
    assert seen == [(here, 1, 3), (here, 4, "absent")]
    assert getattr(Host, name).__name__ == name
    armed.undo()
    assert vars(Host).get(name) is own


def test_what_the_first_keeps_the_second_has(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    monkeypatch.setattr(Host, "method", lambda self, a: order.append(("the host's", a)) or "result")

    def before(call: Call) -> None:
        order.append("before")
        call.kept = "kept"
        call.replace("a", call.get("a") + 1)

    armed = patched("method", before, lambda call: order.append((call.kept, call.value, call.error)))
    assert Host().method(1) == "result"
    armed.undo()
    assert order == ["before", ("the host's", 2), ("kept", "result", None)]


def test_a_result_can_be_put_in_place_of_the_hosts() -> None:
    armed = patched("method", after=lambda call: setattr(call, "value", [call.value]))
    assert Host().method(1) == [(1, 2)]
    armed.undo()


def test_an_exception_of_the_host_is_seen_and_kept_by_nobody() -> None:
    """Seen to fail with ``call.error`` left in place: a cycle by the traceback kept the call's arguments."""
    seen: list[Any] = []

    class Argument:
        pass

    armed, argument = patched("fails", after=lambda call: seen.append((call.value, type(call.error)))), Argument()
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
    assert seen == [(None, KeyError)]


@pytest.mark.expects_faults
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_in_one_changes_nothing_and_many_switch_it_off(when: str, no_hidden_error: list[Any]) -> None:
    """Seen to fail without the handlers of ``calls.looking``, and without its look at the breaker."""

    def look(call: Call) -> None:
        call.value = "ours"
        raise RuntimeError("ours")

    armed, more = patched("method", **{when: look}), patched("fails", **{when: look})
    with pytest.raises(KeyError, match="the host's own"):
        Host().fails(1)
    for _ in range(faults.BREAKER_LIMIT + 5):
        assert Host().method(1) == (1, 2)
    assert armed.breaker.seen == faults.BREAKER_LIMIT
    assert [place for place, _ in no_hidden_error[:2]] == ["fake.Host.fails", "fake.Host.method"]
    armed.undo()
    more.undo()


@pytest.mark.expects_faults
def test_the_second_does_not_follow_a_first_that_failed() -> None:
    """Whose host call is made all the same, with an argument that the look had read and replaced."""
    seen: list[Any] = []

    def before(call: Call) -> None:
        call.replace("a", 5)
        raise RuntimeError("ours")

    armed = patched("inherited", before, seen.append)
    assert Host().inherited(1) == (5, 2)
    armed.undo()
    assert not seen
