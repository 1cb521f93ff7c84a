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
from collections.abc import Callable, Generator, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from otel_llm import faults, tested
from otel_llm.engine_state import Emit

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


class Call:
    """One call of a wrapped function, its arguments by name."""

    __slots__ = ("_positions", "args", "instance", "kwargs")

    def __init__(
        self, positions: Mapping[str, int], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._positions = positions
        self.instance = instance
        self.args = args
        self.kwargs = kwargs

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of this name, or the default if the caller left it out."""
        if name in self.kwargs:
            return self.kwargs[name]
        position = self._positions.get(name, sys.maxsize)
        return self.args[position] if position < len(self.args) else default

    def replace(self, name: str, value: Any) -> None:
        """Pass another value for this argument, however the caller passed it."""
        position = self._positions.get(name, sys.maxsize)
        if position < len(self.args):
            self.args = (*self.args[:position], value, *self.args[position + 1 :])
        else:
            self.kwargs = {**self.kwargs, name: value}


class Returned(NamedTuple):
    """How the wrapped call ended."""

    value: Any
    error: BaseException | None


Body = Callable[[Call], Generator[None, Returned, Any]]
"""
A generator with exactly one ``yield``, which stands for the wrapped call and
gives how it ended. The driver makes the call itself: a body cannot forget it,
repeat it or swallow its exception. What the body returns, unless None,
replaces the result (for proxies around iterators).
"""


@dataclass(frozen=True, slots=True)
class Hook:
    """A function to wrap, and what to do around it."""

    targets: tuple[str, ...]
    """``module:Class.method``, preferred first; the first that resolves is wrapped."""
    body: Body | None = None
    replacement: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """
    Instead of a body, for calls per token: given the original, returns a plain
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
        if hook.body is not None:
            wrapper: Any = wrapt.FunctionWrapper(original, _driver(hook, original, self.breaker))
        else:
            assert hook.replacement is not None
            wrapper = hook.replacement(original)
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


def _positions(original: Any) -> dict[str, int]:
    """Position of each parameter that can be passed by position, without self."""
    function = getattr(original, "__func__", original)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    bound = not isinstance(original, staticmethod) and names[:1] in (["self"], ["cls"])
    return {name: position for position, name in enumerate(names[1:] if bound else names)}


def _driver(hook: Hook, original: Any, breaker: faults.Breaker) -> Callable[..., Any]:
    """Run the hook's body around the call. Only the host's exceptions pass."""
    positions, place, body = _positions(original), hook.targets[0].rpartition(":")[2], hook.body
    assert body is not None

    def drive(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not breaker.closed:
            return wrapped(*args, **kwargs)
        call = Call(positions, instance, args, kwargs)
        try:
            steps = body(call)
            next(steps)
        except Exception as error:
            breaker.swallow(place, error)
            return wrapped(*call.args, **call.kwargs)  # an iterator may have been read and replaced
        try:
            value = wrapped(*call.args, **call.kwargs)
        except BaseException as error:
            _resume(steps, Returned(None, error), breaker, place)
            raise
        replacement = _resume(steps, Returned(value, None), breaker, place)
        return value if replacement is None else replacement

    return drive


def _resume(steps: Generator[None, Returned, Any], returned: Returned, breaker: faults.Breaker, place: str) -> Any:
    try:
        steps.send(returned)
    except StopIteration as stop:
        return stop.value
    except Exception as error:
        breaker.swallow(place, error)
    else:
        steps.close()
        breaker.swallow(place, RuntimeError("a hook body must yield exactly once"))
    return None
