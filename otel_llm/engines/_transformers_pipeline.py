"""
Pipelines around ``generate``. Not an engine: files that start with ``_`` are none.

A pipeline tokenises before ``generate`` and detokenises after it, all inside
one call: of ``run_single``, or of ``next()`` on the iterator that lists,
generators and batches go through. That call is the request; what is lazy stays
lazy. Of a batch it delivers the first result, the others come in calls of
their own that generate nothing.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Final, Protocol

from otel_llm.patching import Call, Hook


class Held(Protocol):
    """A call of ``generate`` that has ended."""

    def over(self, error: BaseException | None, now: int) -> None:
        """The pipeline around it has come to its end too, at this monotonic nanosecond."""


scope: Final[ContextVar[Scope | None]] = ContextVar("otel_llm_transformers_pipeline", default=None)
"""The pipeline call that runs in this thread."""


class Scope:
    """One pipeline call: when its preparation began, and the request that waits for its end."""

    def __init__(self) -> None:
        self.began: int | None = None
        """Monotonic nanoseconds, when the first input was taken up."""
        self._held: tuple[Held, int] | None = None

    def take(self) -> int | None:
        """When the preparation of the request that now begins had begun, if it was seen."""
        self.end(None)  # a pipeline that generates again: what it held was over
        began, self.began = self.began, None
        return began

    def hold(self, request: Held, ended: int) -> None:
        """Keep a request whose tokens are there until its result is."""
        self._held = request, ended

    def end(self, error: BaseException | None, now: int | None = None) -> None:
        """Close the request that is held, at ``now`` or where its ``generate`` ended."""
        if self._held is not None:
            (request, ended), self._held = self._held, None
            request.over(error, now or ended)


def _begins(call: Call) -> None:
    if scope.get() is None:  # iterators are nested: the outermost counts
        here = Scope()
        call.kept = here, scope.set(here)


def _over(call: Call) -> None:
    if call.kept is not None:
        here, token = call.kept
        scope.reset(token)
        here.end(call.error, time.monotonic_ns())


def _preprocess(_call: Call) -> None:
    here = scope.get()
    if here is not None and here.began is None:
        here.began = time.monotonic_ns()


_FOLDER: Final = "transformers.pipelines."
HOOKS: Final = (
    Hook((_FOLDER + "base:Pipeline.run_single",), before=_begins, after=_over, required=False),
    Hook((_FOLDER + "pt_utils:PipelineIterator.__next__",), before=_begins, after=_over, required=False),
    Hook((_FOLDER + "text_generation:TextGenerationPipeline.preprocess",), before=_preprocess, required=False),
    Hook((_FOLDER + "image_text_to_text:ImageTextToTextPipeline.preprocess",), before=_preprocess, required=False),
    # Before version 5.
    Hook(
        (_FOLDER + "text2text_generation:Text2TextGenerationPipeline.preprocess",), before=_preprocess, required=False
    ),
    Hook((_FOLDER + "text2text_generation:TranslationPipeline.preprocess",), before=_preprocess, required=False),
)
