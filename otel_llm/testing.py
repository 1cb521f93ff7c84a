"""
Tools for tests of services that use otel-llm, and of engine files.

``recording()`` gives the finished timelines of a block as data;
``swallowed()`` brings the errors that otel-llm swallowed in it back to light.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from otel_llm import faults
from otel_llm.instrumentation import add_sink
from otel_llm.patching import Engine, Hook, Patcher, resolve
from otel_llm.timeline import Timeline


@contextmanager
def recording() -> Iterator[list[Timeline]]:
    """Collect every timeline that finishes inside the block. Needs ``instrument()``."""
    seen: list[Timeline] = []
    remove = add_sink(seen.append)
    try:
        yield seen
    finally:
        remove()


@contextmanager
def swallowed() -> Iterator[list[tuple[str, Exception]]]:
    """Collect the errors that otel-llm swallows inside the block, as (place, exception)."""
    seen: list[tuple[str, Exception]] = []

    def observe(place: str, error: Exception) -> None:
        seen.append((place, error))

    faults.observers.append(observe)
    try:
        yield seen
    finally:
        faults.observers.remove(observe)


def assert_adds_up(timeline: Timeline) -> None:
    """Raise AssertionError unless the phases are positive, adjoin and sum to the total exactly."""
    phases = timeline.phases()
    assert sum(phase.duration for phase in phases) == timeline.duration, timeline
    assert all(phase.duration > 0 for phase in phases), timeline
    ends = [timeline.start, *(phase.end for phase in phases)]
    starts = [*(phase.start for phase in phases), timeline.ended]
    assert ends == starts, timeline
    for child in timeline.children:
        assert_adds_up(child)


def missing_targets(engine: Engine) -> list[str]:
    """Return the required targets that the installed version of the engine does not have; imports it."""
    hooks = engine.hooks(Patcher(engine, _drop, _no_context, _do_nothing).probe)
    return [hook.targets[0] for hook in hooks if hook.required and resolve(hook) is None]


def assert_undo_restores(engine: Engine) -> None:
    """Raise AssertionError unless patching and undoing leaves the identical objects; imports the engine."""
    patcher = Patcher(engine, _drop, _no_context, _do_nothing)
    hooks = engine.hooks(patcher.probe)
    before = _originals(hooks)
    patcher.apply()
    assert patcher.state == "applied", patcher.reason
    assert patcher.wrapped, "nothing was wrapped"
    changed = [target for target, (_, _, original) in _originals(hooks).items() if original is before[target][2]]
    assert set(changed).isdisjoint(patcher.wrapped), changed
    patcher.undo()
    after = _originals(hooks)
    for target, (parent, attribute, original) in before.items():
        assert after[target][2] is original, target
        own = vars(parent).get(attribute) is original
        assert own or attribute not in vars(parent), f"{target} left a shadow"


def _originals(hooks: tuple[Hook, ...]) -> dict[str, tuple[Any, str, Any]]:
    places = {hook.targets[0]: resolve(hook) for hook in hooks}
    return {target: place for target, place in places.items() if place is not None}


def _drop(_timeline: object) -> None:
    """Takes timelines and keeps none."""


def _no_context(headers: object = None, carried: object = None) -> None:
    """Captures nothing."""


def _do_nothing() -> bool:
    """An engine that is ready changes nothing here."""
    return False
