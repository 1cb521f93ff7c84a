"""
What happens around one call of a wrapped function: only the host's exceptions pass.

A body stands around the call; where calls are many, what enters it and leaves
it costs a third of that. Both are given the call's arguments by name, whatever
their order is in the installed version.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, NamedTuple

from otel_llm import faults

_NOWHERE: Final = sys.maxsize


class Call:
    """One call of a wrapped function, with its arguments by name."""

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
        position = self._positions.get(name, _NOWHERE)
        return self.args[position] if position < len(self.args) else default

    def replace(self, name: str, value: Any) -> None:
        """Pass another value for this argument, however the caller passed it."""
        position = self._positions.get(name, _NOWHERE)
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

Leave = Callable[[Any, BaseException | None], Any]
"""Given what the call returned, and what it raised or None. What it returns, unless None, is the result instead."""

Enter = Callable[[Any, Mapping[str, Any], dict[str, Any]], Leave | None]
"""
Given the instance, the arguments by name and those that the caller passed by
name, before the call is made; what it puts in the latter is passed on. Returns
what is to be told how the call ended, if anything is.
"""


def _positions(original: Any) -> dict[str, int]:
    """Position of each parameter that can be passed by position, without self."""
    function = getattr(original, "__func__", original)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    bound = not isinstance(original, staticmethod) and names[:1] in (["self"], ["cls"])
    return {name: position for position, name in enumerate(names[1:] if bound else names)}


def argument(original: Any, name: str, *default: Any) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    """
    What reads one argument of a call of ``original`` by its name.

    For a function that takes its place and is given all as the caller gave it:
    a parameter of its own would raise into the caller where upstream renames
    its own. Without a default, LookupError if the caller left it out, or it
    has another name.
    """
    position = _positions(original).get(name, _NOWHERE)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if position < len(args):
            return args[position]
        return kwargs.get(name, *default) if default else kwargs[name]

    return read


def driver(body: Body, original: Any, place: str, breaker: faults.Breaker) -> Callable[..., Any]:
    """Run the body around the call; for ``wrapt.FunctionWrapper``."""
    positions = _positions(original)

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


def entering(enter: Enter, original: Callable[..., Any], place: str, breaker: faults.Breaker) -> Callable[..., Any]:
    """Take the place of a method."""
    names = tuple(_positions(original))

    @functools.wraps(original)
    def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
        leave = None
        if breaker.closed:
            try:
                given = kwargs | dict(zip(names, args, strict=False)) if args else kwargs
                leave = enter(self, given, kwargs)
            except Exception as fault:
                breaker.swallow(place, fault)
        if leave is None:
            return original(self, *args, **kwargs)
        try:
            value = original(self, *args, **kwargs)
        except BaseException as error:
            try:
                leave(None, error)
            except Exception as fault:
                breaker.swallow(place, fault)
            raise
        try:
            replacement = leave(value, None)
        except Exception as fault:
            breaker.swallow(place, fault)
            return value
        return value if replacement is None else replacement

    return entered
