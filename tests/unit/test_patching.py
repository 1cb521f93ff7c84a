"""Resolve all, wrap all, undo all; only the host's exceptions pass."""

from __future__ import annotations

import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_llm import faults, tested
from otel_llm.patching import Body, Call, Engine, Hook, Patcher, Probe
from otel_llm.testing import assert_undo_restores, missing_targets

HOST = "otel_llm_fake_host"


class Base:
    def inherited(self, a: int, b: int = 2) -> tuple[int, int]:
        return a, b


class Host(Base):
    def method(self, a: int, *, b: int = 2) -> tuple[int, int]:
        return a, b

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def klass(cls, a: int) -> tuple[str, int]:
        return cls.__name__, a

    def fails(self) -> None:
        raise KeyError("the host's own")


@pytest.fixture(autouse=True)
def host() -> Iterator[types.ModuleType]:
    module = types.ModuleType(HOST)
    module.Host = Host  # type: ignore[attr-defined]
    sys.modules[HOST] = module
    yield module
    del sys.modules[HOST]


def watch(seen: list[Any]) -> Body:
    def body(call: Call) -> Any:
        seen.append((call.get("a"), call.get("b", "absent")))
        returned = yield
        seen.append(returned)

    return body


def engine(*hooks: Hook, anchor: str = HOST) -> Engine:
    return Engine("fake", HOST, (anchor,), lambda _probe: hooks)


def patcher(*hooks: Hook) -> Patcher:
    armed = Patcher(engine(*hooks), lambda _t: None, lambda _h=None: None, lambda: None)
    armed.arm()
    return armed


def hook(path: str, body: Body, **more: Any) -> Hook:
    return Hook((f"{HOST}:{path}",), body, **more)


@pytest.mark.parametrize(
    ("path", "call", "expected"),
    [
        ("Host.method", lambda: Host().method(1, b=3), (1, 3)),
        ("Host.inherited", lambda: Host().inherited(1, 3), (1, 3)),
        ("Host.static", lambda: Host.static(1), 1),
        ("Host.klass", lambda: Host.klass(1), ("Host", 1)),
    ],
)
def test_a_hook_sees_arguments_by_name_and_the_result(path: str, call: Callable[[], Any], expected: Any) -> None:
    seen: list[Any] = []
    armed = patcher(hook(path, watch(seen)))
    assert call() == expected
    assert seen[0][0] == 1
    assert seen[1].value == expected
    armed.undo()
    assert call() == expected
    assert len(seen) == 2


def test_what_is_said_is_heard_where_the_root_logs_errors_alone(caplog: pytest.LogCaptureFixture) -> None:
    """
    As in vLLM's server, which imports what sets the root's level (model_hosting_container_standards).

    Seen to fail without a level of the logger's own.
    """
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        patcher(hook("Host.renamed", watch([])))
    finally:
        logging.root.setLevel(before)
    assert f"{HOST}:Host.renamed" in caplog.text


def test_undo_restores_the_identical_objects() -> None:
    paths = ("Host.method", "Host.inherited", "Host.static", "Host.klass")
    assert_undo_restores(engine(*(hook(path, watch([])) for path in paths)))
    assert "inherited" not in vars(Host)


def test_one_missing_target_leaves_everything_untouched(caplog: pytest.LogCaptureFixture) -> None:
    before = dict(vars(Host))
    armed = patcher(hook("Host.method", watch([])), hook("Host.renamed", watch([])))
    assert dict(vars(Host)) == before
    assert armed.state == "failed"
    assert f"{HOST}:Host.renamed" in armed.reason
    assert f"{HOST}:Host.renamed" in caplog.text
    assert missing_targets(engine(hook("Host.renamed", watch([])))) == [f"{HOST}:Host.renamed"]


def test_a_missing_optional_target_is_no_matter() -> None:
    armed = patcher(hook("Host.method", watch([])), hook("Host.renamed", watch([]), required=False))
    assert armed.wrapped == (f"{HOST}:Host.method",)
    armed.undo()


def test_the_first_target_that_exists_is_wrapped() -> None:
    seen: list[Any] = []
    armed = patcher(Hook((f"{HOST}:Host.renamed", f"{HOST}:Host.method"), watch(seen)))
    Host().method(1)
    assert seen
    armed.undo()


@pytest.mark.expects_faults
@pytest.mark.parametrize("position", ["before", "after", "no yield", "two yields"])
def test_an_error_in_a_hook_never_reaches_the_host(position: str, no_hidden_error: list[tuple[str, Exception]]) -> None:
    def body(_call: Call) -> Any:
        if position == "before":
            raise RuntimeError(position)
        if position == "no yield":
            return
        yield
        if position == "after":
            raise RuntimeError(position)
        if position == "two yields":
            yield

    errors = faults.errors["fake.Host.method"]
    armed = patcher(hook("Host.method", body))
    assert Host().method(1, b=4) == (1, 4)
    assert faults.errors["fake.Host.method"] == errors + 1
    assert len(no_hidden_error) == 1
    armed.undo()


def test_the_hosts_own_exception_passes_unchanged() -> None:
    seen: list[Any] = []
    armed = patcher(hook("Host.fails", watch(seen)))
    with pytest.raises(KeyError) as raised:
        Host().fails()
    assert seen[1].error is raised.value
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    armed.undo()


def test_arguments_can_be_replaced_however_they_were_passed() -> None:
    def body(call: Call) -> Any:
        call.replace("b", 9)
        yield

    armed = patcher(hook("Host.inherited", body))
    host = Host()
    assert host.inherited(1) == host.inherited(1, 2) == host.inherited(1, b=2) == (1, 9)
    armed.undo()


@pytest.mark.expects_faults
def test_an_iterator_that_a_failing_hook_has_read_still_reaches_the_host() -> None:
    """Seen to fail with the arguments as they came: the host found them empty."""

    def body(call: Call) -> Any:
        call.replace("a", tuple(call.get("a")))
        raise RuntimeError("after it was read")
        yield

    armed = patcher(hook("Host.method", body))
    assert Host().method(iter([1, 2])) == ((1, 2), 2)  # type: ignore[arg-type,comparison-overlap]
    armed.undo()


@pytest.mark.expects_faults
def test_hooks_switch_themselves_off_after_too_many_errors(caplog: pytest.LogCaptureFixture) -> None:
    def body(_call: Call) -> Any:
        raise RuntimeError
        yield

    armed = patcher(hook("Host.method", body))
    for _ in range(faults.BREAKER_LIMIT + 20):
        assert Host().method(1) == (1, 2)
    assert armed.breaker.seen == faults.BREAKER_LIMIT
    assert "switched off" in caplog.text
    armed.undo()


def test_a_wrapper_that_somebody_put_on_top_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    original = Host.method
    armed = patcher(hook("Host.method", watch([])))
    ours = vars(Host)["method"]
    Host.method = lambda self, a, **kw: ours.__get__(self)(a, **kw)  # type: ignore[method-assign,assignment]
    armed.undo()
    assert Host().method(1) == (1, 2)
    assert "wrapped again" in caplog.text
    Host.method = original  # type: ignore[method-assign]


def test_hooks_wait_for_the_import_and_need_no_engine() -> None:
    program = """
import sys, pathlib, tempfile
from otel_llm.patching import Engine, Hook, Patcher
folder = tempfile.mkdtemp(); sys.path.insert(0, folder)
pathlib.Path(folder, "late_host.py").write_text("class Host:\\n    def method(self): return 1\\n")
calls = []
def body(call):
    calls.append(1)
    yield
row = Engine("late", "late_host", ("late_host",), lambda probe: (Hook(("late_host:Host.method",), body),))
patcher = Patcher(row, calls.append, lambda headers=None: None, lambda: None)
patcher.arm()
assert patcher.state == "armed" and "late_host" not in sys.modules
import late_host
assert patcher.state == "applied" and late_host.Host().method() == 1 and calls == [1]
patcher.undo()
assert late_host.Host().method() == 1 and calls == [1]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_probe_is_what_an_engine_is_given() -> None:
    given: list[Probe] = []
    row = Engine("fake", HOST, (HOST,), lambda probe: given.append(probe) or ())  # type: ignore[func-returns-value]
    armed = Patcher(row, lambda _t: None, lambda _h=None: None, lambda: None)
    assert given == [armed.probe]


@pytest.mark.parametrize(
    ("version", "outside"), [("2.1.0", False), ("2.9.1+cpu", False), ("1.9", True), ("3.0.0rc1", True)]
)
def test_a_version_outside_of_the_tested_ones_is_tried_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str, outside: bool
) -> None:
    module = types.ModuleType("novel")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "novel", module)
    monkeypatch.setitem(tested.RANGES, "novel", ("2.1", "2.9"))
    said = tested.remark("novel")
    assert bool(said) is outside
    assert (f"novel {version} is outside of 2.1 to 2.9" in caplog.text) is outside
