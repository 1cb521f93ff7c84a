"""
One engine request of vLLM. Not an engine: files that start with ``_`` are none.

A sample hangs on vLLM's own request state, so that nothing of ours outlives it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from otel_llm.engines._vllm_clock import Stamps, anchored
from otel_llm.engines._vllm_tracing import sampling
from otel_llm.engines._vllm_waits import waits
from otel_llm.timeline import AttributeValue, Timeline, nanoseconds

if TYPE_CHECKING:
    from otel_llm.engines._vllm_request import Request


class Sample:
    """One engine request; a request has ``n`` of them."""

    ended = preemptions = stall = preempted_at = received = queued = first_token = input_wait = 0
    reason: Any = None
    """What vLLM calls the end, None until it has come."""
    headers: Mapping[str, str] = MappingProxyType({})
    events: Sequence[Any] = ()
    """Those of the first message, which are read when a second one comes, or at the end."""

    def __init__(self, request: Request, state: Any, submitted: int, traced: bool) -> None:
        self.request, self.state, self.submitted, self.traced = request, state, submitted, traced

    @property
    def finish(self) -> str:
        """The finish reason; empty until there is one."""
        return "" if self.reason is None else str(self.reason)

    def finished(self, reason: Any) -> None:
        self.reason, self.ended = reason, time.monotonic_ns()
        if not self.request.streamed:
            self.request.sample_ended(self.ended)

    def told(self, now: int, events: Sequence[Any], headers: Mapping[str, str] | None) -> None:
        """What the core says of its scheduling, with some of its outputs: nearly always with the first one alone."""
        if headers:
            self.headers = headers
        if self.received:
            self._read()
            self.events = events
            self._read()
        else:
            self.received, self.events = now, events

    def _read(self) -> None:
        events, self.events = self.events, ()
        for event in events:
            self._event(event.type._name_, round(event.timestamp * 1e9))  # ``name`` of an Enum is a Python call

    def _event(self, kind: str, at: int) -> None:
        if kind == "PREEMPTED":
            self.preemptions, self.preempted_at = self.preemptions + 1, at
        elif kind == "SCHEDULED" and self.preempted_at:
            self.stall, self.preempted_at = self.stall + at - self.preempted_at, 0
        elif kind == "QUEUED" and not self.queued:
            self.queued = at
        elif kind == "QUEUED":  # the next piece of a streaming input; vLLM's stamps start anew
            stats = self.state.stats
            self.first_token = self.first_token or nanoseconds(stats.first_token_ts) or 0
            self.input_wait += max(at - (nanoseconds(stats.last_token_ts) or at), 0)

    def timeline(self, ended: int, ending: dict[str, Any]) -> Timeline:
        """One of several samples; ``ending`` is that of the request, which holds if this one was cut."""
        cut, marks = self.marks(ended, ending["outcome"])
        return self.request.sample(ended=self.ended or ended, **marks, **(ending if cut else {}))

    def marks(self, ended: int, outcome: str) -> tuple[bool, dict[str, Any]]:
        """Whether it was cut, and what is known of it."""
        self._read()
        state, stats, detokenizer = self.state, self.state.stats, self.state.detokenizer
        finish = self.finish
        cut = finish in ("abort", "error") or (not finish and outcome != "ok")
        # The engine's count may run ahead of the output where a stop string cut it.
        tokens = stats.num_generation_tokens if detokenizer is None else detokenizer.num_output_tokens()
        answered = tokens > 0 or (detokenizer is None and not cut)
        last = nanoseconds(stats.last_token_ts) if answered else None
        stamps = Stamps(
            queued=self.queued or None,
            scheduled=nanoseconds(stats.scheduled_ts),
            first_token=(self.first_token or nanoseconds(stats.first_token_ts)) if answered else None,
            last_token=last,
        )
        moved = anchored(stamps, self.submitted, self.received, self.ended or ended)
        placed = moved or stamps
        return cut, {
            "submitted": self.submitted,
            "scheduled": placed.scheduled,
            "first_token": placed.first_token,
            "last_token": None if cut else placed.last_token,
            "cut_known": placed.scheduled is not None,  # told with the first output only
            "finish_reasons": (finish,) if finish else (),
            "prompt_tokens": state.prompt_len,
            "cached_tokens": state.num_cached_tokens,
            "output_tokens": tokens,
            "preemptions": self.preemptions,
            "preemption_stall": self.stall,
            "attributes": self._attributes(stamps, moved is not None),
        }

    def _attributes(self, stamps: Stamps, moved: bool) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue] = sampling(self.state) if self.traced else {}
        queued, scheduled = stamps.queued or 0, stamps.scheduled or 0
        queue = (scheduled - queued) / 1e9 if 0 < queued <= scheduled else None
        if queue is not None:
            found["otel_llm.engine.queue_time"] = queue
        if self.headers:
            found.update(waits(self.headers, queued, queue, again=self.preemptions > 0))
        if self.input_wait:
            found["otel_llm.engine.input_wait"] = self.input_wait / 1e9
        drafts = getattr(self.state, "spec_decode_metrics", None)
        if drafts is not None:
            found["otel_llm.engine.draft_tokens"] = drafts.num_draft_tokens
            found["otel_llm.engine.accepted_tokens"] = sum(n * times for n, times in enumerate(drafts.histogram))
        if moved:
            found["otel_llm.engine.clock"] = "anchored"
        return found
