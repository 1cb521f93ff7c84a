"""Hooks of an engine with errors of ours in them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from otel_llm.calls import Body, Call, Enter, Leave
from otel_llm.patching import Engine, Hook, Patcher, Probe

POSITIONS = ("before the call", "after the call", "while the host fails")
"""The last is an error where the call itself has raised."""

Hooks = Callable[[Probe], tuple[Hook, ...]]


def fail(*_: Any, **__: Any) -> Any:
    """Stands for anything of ours that is broken."""
    raise RuntimeError("broken")


def broken(body: Body, position: str) -> Body:
    """The same body, with an error of ours in it."""

    def sabotage(call: Call) -> Any:
        if position == POSITIONS[0]:
            raise RuntimeError(position)
        steps = body(call)
        next(steps)
        returned = yield
        with contextlib.suppress(StopIteration):
            steps.send(returned)
        if position == POSITIONS[1] or returned.error is not None:
            raise RuntimeError(position)

    return sabotage


def broken_enter(enter: Enter, position: str) -> Enter:
    """The same; of a call whose end it does not want to know, the second position is an error when all is done."""

    def sabotage(instance: Any, given: Mapping[str, Any], kwargs: dict[str, Any]) -> Leave | None:
        if position == POSITIONS[0]:
            raise RuntimeError(position)
        leave = enter(instance, given, kwargs)
        if leave is None:
            if position == POSITIONS[1]:
                raise RuntimeError(position)
            return None

        def left(value: Any, error: BaseException | None) -> Any:
            replacement = leave(value, error)
            if position == POSITIONS[1] or error is not None:
                raise RuntimeError(position)
            return replacement

        return left

    return sabotage


def hooks_with(hooks: Hooks, position: str, target: str | None = None) -> Hooks:
    """The same hooks: all bodies broken, or that of a target, or what an engine file is given (emit, capture)."""

    def made(probe: Probe) -> tuple[Hook, ...]:
        if position in ("emit", "capture"):
            return hooks(probe._replace(**{position: fail}))
        return tuple(
            _broken_row(row, position) if position in POSITIONS and target in (None, row.targets[0]) else row
            for row in hooks(probe)
        )

    return made


def _broken_row(row: Hook, position: str) -> Hook:
    if row.body:
        return dataclasses.replace(row, body=broken(row.body, position))
    return dataclasses.replace(row, enter=broken_enter(row.enter, position)) if row.enter else row


@contextlib.contextmanager
def armed(engine: Engine, position: str, target: str | None = None) -> Iterator[Patcher]:
    """The hooks in place, broken like that; nothing is recorded."""
    wrong = dataclasses.replace(engine, hooks=hooks_with(engine.hooks, position, target))
    patcher = Patcher(wrong, lambda _said: None, lambda *_, **__: None, lambda: False)
    patcher.arm()
    assert patcher.state == "applied"
    try:
        yield patcher
    finally:
        patcher.undo()
