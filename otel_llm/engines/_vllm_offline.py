"""
The offline ``LLM`` of vLLM. Not an engine: files that start with ``_`` are none.

One call of it submits many engine requests; each prompt is a request. A beam
search is one request: it asks the engine for every beam and token anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from otel_llm.engines._vllm_request import Request, current
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Enter, Hook, Leave, Probe
from otel_llm.recording import Draft
from otel_llm.timeline import Timeline, ending, merged

BEAMS_KEPT: Final = 64
"""Engine requests of one beam search that keep a timeline of their own."""


class Batch:
    """A call of the offline ``LLM``."""

    def __init__(self, operation: str, emit: Callable[[Draft], None] | None = None) -> None:
        self.operation, self.emit = operation, emit
        self.reported: BaseException | None = None


class Beams(Batch):
    """A beam search, as one request."""

    def __init__(self, llm: Any, given: Mapping[str, Any], probe: Probe) -> None:
        super().__init__("text_completion", self.collect)
        self.request = Request(llm.llm_engine, given, probe, self.operation)
        self.prompts = len(given["prompts"])
        self.found: list[Timeline] = []

    def collect(self, draft: Draft) -> None:
        """Keep one engine request; those that are too many become one."""
        if (timeline := draft.timeline()) is not None:
            self.found.append(timeline)
        if len(self.found) > 2 * BEAMS_KEPT:
            kept, rest = self.found[:BEAMS_KEPT], self.found[BEAMS_KEPT:]
            fields = {**merged(rest), "children": (), "finish_reasons": ()}
            self.found = [*kept, replace(rest[0], **fields, ended=rest[-1].ended)]

    def close(self, error: BaseException | None) -> None:
        """All beams are found, or the search failed."""
        outcome, reason = ending(error, accepted=bool(self.found))
        # The engine's requests hold a prompt and its beam; only the first of a single prompt is the prompt alone.
        known: dict[str, Any] = {} if self.prompts == 1 else {"prompt_tokens": None, "cached_tokens": None}
        self.request.close(outcome, reason, samples=self.found, finish_reasons=(), **known)


_batch: Final[ContextVar[Batch | None]] = ContextVar("otel_llm_vllm_batch", default=None)


def refused(error: BaseException) -> bool:
    """Whether vLLM blames the request: 0.32 has a class for that, older versions raise ValueError."""
    return isinstance(error, ValueError) or any(base.__name__ == "VLLMClientError" for base in type(error).__mro__)


def _left(llm: Any) -> Iterable[Request]:
    """The requests that its engine has not finished."""
    states = tuple(llm.llm_engine.output_processor.request_states.values())
    return [sample.request for state in states if (sample := getattr(state, KEY, None))]


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """The required hook serves ``LLMEngine`` without ``LLM`` as well."""

    def arrives(engine: Any, given: Mapping[str, Any], _kwargs: object) -> Leave:
        batch = _batch.get()
        operation, emit = ("text_completion", None) if batch is None else (batch.operation, batch.emit)
        request = Request(engine, given, probe, operation, given.get("params"), emit)
        token = current.set(request)

        def added(_value: object, error: BaseException | None) -> None:
            current.reset(token)
            if error is not None:
                request.ended(error)
                if batch is not None:
                    batch.reported = error

        return added

    def begins(operation: str) -> Enter:
        def enter(llm: Any, given: Mapping[str, Any], _kwargs: object) -> Leave | None:
            if _batch.get() is not None:
                return None
            batch, began = Batch(operation), time.monotonic_ns()
            token = _batch.set(batch)

            def over(_value: object, error: BaseException | None) -> None:
                _batch.reset(token)
                if error is None:
                    return
                # A prompt can fail in rendering, before it is added to the engine.
                if refused(error) and error is not batch.reported:
                    request = Request(llm.llm_engine, given, probe, operation)
                    request.received = began
                    request.ended(error)
                for left in _left(llm):  # what the engine took down with it
                    left.ended(error)

            return over

        return enter

    def beam_search(llm: Any, given: Mapping[str, Any], _kwargs: object) -> Leave:
        beams = Beams(llm, given, probe)
        token = _batch.set(beams)

        def over(_value: object, error: BaseException | None) -> None:
            _batch.reset(token)
            for left in _left(llm):
                left.ended(error)
            beams.close(error)

        return over

    return (
        Hook(("vllm.v1.engine.llm_engine:LLMEngine.add_request",), enter=arrives),
        Hook(("vllm.entrypoints.llm:LLM.generate",), enter=begins("text_completion"), required=False),
        Hook(("vllm.entrypoints.llm:LLM.chat",), enter=begins("chat"), required=False),
        Hook(("vllm.entrypoints.llm:LLM.beam_search",), enter=beam_search, required=False),
    )
