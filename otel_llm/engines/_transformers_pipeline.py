"""
Pipelines around ``generate``. Not an engine: files that start with ``_`` are none.

A pipeline tokenises before ``generate`` and detokenises after it, all inside
one call: of ``run_single``, or of ``next()`` on the iterator that lists,
generators and batches go through. That call is the request; what is lazy stays
lazy. Of a batch it delivers the first result, the others come in calls of
their own that generate nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextvars import Token
from typing import Any, Protocol

from otel_llm.engines import _transformers_here as here
from otel_llm.patching import Hook, Leave, Probe


class Held(Protocol):
    """A call of ``generate`` that has ended."""

    def over(self, error: BaseException | None, now: int) -> None:
        """The pipeline around it has come to its end too, at this monotonic nanosecond."""


class Scope:
    """One pipeline call: when its preparation began, and the request that waits for its end."""

    token: Token[Scope | None]
    """Of ``here.pipeline``."""
    began: int | None = None
    """Monotonic nanoseconds, when the first input of the request that generates next was taken up."""
    held: tuple[Held, int] | None = None
    """A request whose tokens are there, but not its result; and when its ``generate`` ended."""

    def release(self) -> None:
        """Close the request that is held, where its ``generate`` ended."""
        if self.held is not None:
            (request, ended), self.held = self.held, None
            request.over(None, ended)

    def left(self, _value: object, error: BaseException | None) -> None:
        """The pipeline call has returned or raised, and with it the request that is held."""
        here.pipeline.reset(self.token)
        if (held := self.held) is not None:
            self.held = None
            held[0].over(error, time.monotonic_ns())


def _entered(_pipeline: object, _given: object, _kwargs: object) -> Leave | None:
    if here.pipeline.get() is not None:  # iterators are nested: the outermost counts
        return None
    scope = Scope()
    scope.token = here.pipeline.set(scope)
    return scope.left


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional."""

    def preparing(original: Callable[..., Any]) -> Callable[..., Any]:
        current, breaker = here.pipeline.get, probe.breaker

        @functools.wraps(original)
        def preprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if (scope := current()) is not None and scope.began is None:
                    scope.began = time.monotonic_ns()
            except Exception as error:
                breaker.swallow("Pipeline.preprocess", error)
            return original(self, *args, **kwargs)

        return preprocess

    folder = "transformers.pipelines."
    prepares = (
        "text_generation:TextGenerationPipeline",
        "image_text_to_text:ImageTextToTextPipeline",
        # Before version 5.
        "text2text_generation:Text2TextGenerationPipeline",
        "text2text_generation:TranslationPipeline",
    )
    return (
        Hook((f"{folder}base:Pipeline.run_single",), enter=_entered, required=False),
        Hook((f"{folder}pt_utils:PipelineIterator.__next__",), enter=_entered, required=False),
        *(Hook((f"{folder}{name}.preprocess",), replacement=preparing, required=False) for name in prepares),
    )
