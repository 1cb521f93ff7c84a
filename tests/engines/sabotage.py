"""Hooks of an engine with errors of ours in them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from otel_llm.calls import Body, Call
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


def broken_looks(row: Hook, position: str) -> Hook:
    """The same looks; of a hook that has none after the call, the second position is an error when all is done."""

    def before(call: Call) -> None:
        if row.before and position != POSITIONS[0]:
            row.before(call)
        if position == POSITIONS[0] or (position == POSITIONS[1] and not row.after):
            raise RuntimeError(position)

    def after(call: Call) -> None:
        assert row.after is not None
        row.after(call)
        if position == POSITIONS[1] or call.error is not None:
            raise RuntimeError(position)

    return dataclasses.replace(row, before=before, after=row.after and after)


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
    return broken_looks(row, position) if row.before or row.after else row


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
