"""
Hooks into an engine: resolve all, wrap all, undo all, guard each.

An engine file states which functions it wraps; everything else happens here.
Hooks wait for the engine's own import. When it comes, every required target is
resolved before the first one is wrapped: a missing target leaves the engine
untouched. This is the only module that imports wrapt.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from otel_llm import faults, tested
from otel_llm.calls import Body, Call, Enter, Leave, Returned, argument, driver, entering
from otel_llm.engine_state import Emit

__all__ = [
    "Body", "Call", "Capture", "Engine", "Enter", "Hook", "Leave", "Patch", "Patcher", "Probe", "Returned", "argument",
    "resolve",
]  # fmt: skip

Ready = Callable[[], bool]


class Capture(Protocol):
    """Keeps the caller's telemetry context; opaque to engines."""

    def __call__(self, headers: Mapping[str, str] | None = None, carried: Context | None = None) -> object:
        """Return the current context, else that of ``carried``, else the one that the headers carry."""


class Probe(NamedTuple):
    """What an engine file is given; it knows nothing of OpenTelemetry."""

    emit: Emit
    """Takes each finished request, and what an engine says of itself. Never raises."""
    capture: Capture
    ready: Ready
    """Called when the engine is about to serve: do our spans go to the global provider? Never raises."""
    breaker: faults.Breaker
    """Swallows what a replacement, which the driver does not guard, must not raise."""
    step_detail: bool = False
    device_timing: bool = False
    """Whether steps are wanted in detail, with their duration; whether the device is asked for time, by events."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A function to wrap, and what to do around it."""

    targets: tuple[str, ...]
    """``module:Class.method``, preferred first; the first that resolves is wrapped."""
    body: Body | None = None
    enter: Enter | None = None
    """Instead of a body, at a method that every request comes by."""
    replacement: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """
    Instead of a body, where calls are most: given the original, returns a plain
    function that takes its place. It guards itself.
    """
    required: bool = True
    """An optional hook is wrapped whenever its own module is imported, in processes without an anchor too."""

    @property
    def module(self) -> str:
        """Module of the preferred target."""
        return self.targets[0].partition(":")[0]


@dataclass(frozen=True, slots=True)
class Engine:
    """All that an engine file exports, under the name ``ENGINE``."""

    name: str
    """``gen_ai.provider.name``, also the name for ``instrument(engines=[...])``."""
    package: str
    """Top-level package; its ``__version__`` is shown in ``status()``."""
    anchors: tuple[str, ...]
    """The first of these modules to be imported triggers the patching."""
    hooks: Callable[[Probe], tuple[Hook, ...]]


class Patch(NamedTuple):
    """A wrapped attribute and what stood there; ``own`` is None if inherited."""

    parent: Any
    attribute: str
    own: Any
    wrapper: Any


State = Literal["off", "armed", "applied", "failed"]


class Patcher:
    """The hooks of one engine in this process."""

    def __init__(self, engine: Engine, emit: Emit, capture: Capture, ready: Ready, *details: bool) -> None:
        self.engine, self.breaker = engine, faults.Breaker(engine.name)
        self.state: State = "off"
        self.reason = ""
        self.probe = Probe(emit, capture, ready, self.breaker, *details)
        self._hooks = engine.hooks(self.probe)
        self._patches: list[Patch] = []
        self._wrapped: list[str] = []

    def arm(self) -> None:
        """Wait for the engine's import; apply now what is imported already."""
        import wrapt  # here, because wrapt imports asyncio, which only an instrumented process needs

        self.state = "armed"
        for anchor in self.engine.anchors:
            wrapt.register_post_import_hook(self._on_anchor, anchor)
        for module in {hook.module for hook in self._hooks if not hook.required}:
            wrapt.register_post_import_hook(self._on_optional, module)

    def undo(self) -> None:
        """Put back exactly what was there. Hooks that still wait stay idle."""
        self.state = "off"
        for patch in reversed(self._patches):
            if vars(patch.parent).get(patch.attribute) is not patch.wrapper:
                faults.warn(patch.attribute, "otel_llm: %s was wrapped again by others, left", patch.attribute)
            elif patch.own is None:
                delattr(patch.parent, patch.attribute)
            else:
                setattr(patch.parent, patch.attribute, patch.own)
        self._patches.clear()
        self._wrapped.clear()

    @property
    def wrapped(self) -> tuple[str, ...]:
        """The targets that are wrapped now."""
        return tuple(self._wrapped)

    def apply(self) -> None:
        """Resolve every required target, then wrap them all, or touch nothing."""
        self.state = "applied"  # importing a target may trigger the next anchor
        required = [(hook, resolve(hook)) for hook in self._hooks if hook.required]
        missing = [hook.targets[0] for hook, place in required if place is None]
        if missing:
            self.undo()  # of what was optional
            self.state, self.reason = "failed", f"this version has no {', '.join(missing)}"
            faults.logger.warning("otel_llm: %s left untouched: %s", self.engine.name, self.reason)
            return
        for hook, place in required:
            assert place is not None
            self._wrap(hook, place)
        for hook in self._hooks:
            if not hook.required and hook.module in sys.modules:
                self._wrap_optional(hook)
        self.reason = tested.remark(self.engine.package)

    def _on_anchor(self, _module: object) -> None:
        if self.state != "armed":
            return
        try:
            self.apply()
        except Exception as error:
            self.undo()
            self.state, self.reason = "failed", f"{type(error).__name__} while patching"
            self.breaker.swallow("apply", error)

    def _on_optional(self, module: Any) -> None:
        if self.state not in ("armed", "applied"):
            return
        for hook in self._hooks:
            if not hook.required and hook.module == module.__name__:
                self._wrap_optional(hook)

    def _wrap_optional(self, hook: Hook) -> None:
        try:
            place = resolve(hook, load=False)
            if place is not None and hook.targets[0] not in self._wrapped:
                self._wrap(hook, place)
        except Exception as error:
            self.breaker.swallow(hook.targets[0], error)

    def _wrap(self, hook: Hook, place: tuple[Any, str, Any]) -> None:
        import wrapt

        parent, attribute, original = place
        where = hook.targets[0].rpartition(":")[2]
        if hook.body is not None:
            wrapper: Any = wrapt.FunctionWrapper(original, driver(hook.body, original, where, self.breaker))
        elif hook.replacement is not None:
            wrapper = hook.replacement(original)
        else:
            assert hook.enter is not None
            wrapper = entering(hook.enter, original, where, self.breaker)
        self._patches.append(Patch(parent, attribute, vars(parent).get(attribute), wrapper))
        setattr(parent, attribute, wrapper)
        self._wrapped.append(hook.targets[0])


def resolve(hook: Hook, *, load: bool = True) -> tuple[Any, str, Any] | None:
    """(parent, attribute, original) of the first target that exists, else None."""
    for target in hook.targets:
        module, _, path = target.partition(":")
        if not load and module not in sys.modules:
            continue
        try:
            parent: Any = importlib.import_module(module)
            *owners, attribute = path.split(".")
            for owner in owners:
                parent = getattr(parent, owner)
            # The raw attribute keeps staticmethod and classmethod as they are.
            original = inspect.getattr_static(parent, attribute)
        except (ImportError, AttributeError):
            continue
        return parent, attribute, original
    return None
