"""A request of continuous batching in flight. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from otel_llm.engines._transformers_model import model_name
from otel_llm.patching import Call, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import Outcome, Timeline

FOLDER: Final = "transformers.generation.continuous_batching."

KEY: Final = "_otel_llm"
"""Where a sample hangs on the library's state of it."""


class Batched(Recording):
    """One ``add_request``; it has as many samples as sequences are returned."""

    engine, operation = "transformers", "text_completion"

    def __init__(self, call: Call, probe: Probe) -> None:
        self.samples: list[Sample] = []
        self.expected = 1
        self.model, self.request_id = model_name(call.instance.model), call.get("request_id")
        super().__init__(probe.emit, probe.capture(), probe.breaker.swallow)

    def attach(self, state: Any) -> None:
        """The library has made its state of this request."""
        self.request_id = state.request_id
        self.expected = 1 + state.num_children
        sample = Sample(self, state.request_id, len(state.initial_tokens))
        self.samples.append(sample)
        setattr(state, KEY, sample)

    def settle(self) -> None:
        """Close when every sample has come to its end."""
        done = [sample for sample in self.samples if sample.outcome]
        if self.open and len(done) >= self.expected:
            worst = min(done, key=lambda sample: ("error", "abort", "ok").index(sample.outcome or "ok"))
            timelines = [sample.timeline() for sample in done]
            self.close(worst.outcome or "ok", worst.reason, samples=timelines, received=None, submitted=self.received)


class Sample:
    """One sequence of a request."""

    def __init__(self, request: Batched, key: str, prompt: int) -> None:
        self.request, self.key, self.prompt = request, key, prompt
        self.scheduled: int | None = None
        self.first: int | None = None
        self.last: int | None = None
        self.cached: int | None = None
        self.tokens = self.preemptions = self.stall = self.preempted_at = self.ended = 0
        self.outcome: Outcome | None = None
        self.reason: str | None = None
        self.finish: tuple[str, ...] = ()

    def twin(self) -> Sample:
        """A state is forked to sample its prompt once more: from there on both go their own way."""
        twin = Sample(self.request, self.key, self.prompt)
        twin.scheduled, twin.cached = self.scheduled, self.cached
        twin.first, twin.last, twin.tokens = self.first, self.last, self.tokens
        self.request.samples.append(twin)
        return twin

    def __deepcopy__(self, memo: object) -> Sample:
        return self.twin()  # the library forks by copying

    def admitted(self, now: int, cached: int | None) -> None:
        if self.scheduled is None:
            self.scheduled, self.cached = now, cached
        elif self.preempted_at:
            self.preemptions, self.stall, self.preempted_at = (
                self.preemptions + 1,
                self.stall + now - self.preempted_at,
                0,
            )

    def token(self, now: int) -> None:
        self.first, self.last, self.tokens = self.first or now, now, self.tokens + 1

    def end(self, outcome: Outcome, reason: str | None, finish: tuple[str, ...] = ()) -> None:
        if self.outcome is None:
            self.outcome, self.reason, self.finish, self.ended = outcome, reason, finish, time.monotonic_ns()
            self.request.settle()

    def timeline(self) -> Timeline:
        return self.request.sample(
            ended=self.ended,
            submitted=self.request.received,
            scheduled=self.scheduled,
            first_token=self.first,
            last_token=self.last if self.outcome == "ok" else None,
            outcome=self.outcome or "ok",
            error_type=self.reason,
            prompt_tokens=self.prompt,
            cached_tokens=self.cached,
            output_tokens=self.tokens,
            preemptions=self.preemptions,
            preemption_stall=self.stall,
            finish_reasons=self.finish,
        )


def samples(states: Iterable[Any]) -> list[Sample]:
    """The samples that hang on these states."""
    return [sample for state in states if (sample := getattr(state, KEY, None)) is not None]
