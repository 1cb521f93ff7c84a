"""
A vLLM request in flight. Not an engine: files that start with ``_`` are none.

A sample hangs on vLLM's own request state, so that nothing of ours outlives it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakSet

from otel_llm.patching import Call, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import Timeline, ending, nanoseconds

current: Final[ContextVar[Request | None]] = ContextVar("otel_llm_vllm_request", default=None)
"""The request whose engine requests are being submitted in this task."""


def served_model(config: Any) -> str:
    """The name that clients know the model by; the first one if it has several."""
    served = config.served_model_name
    return served if isinstance(served, str) else served[0]


class Batch:
    """A call of the offline ``LLM``, which submits many requests."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.requests: WeakSet[Request] = WeakSet()
        self.reported: BaseException | None = None


def refused(error: BaseException) -> bool:
    """Whether vLLM blames the request: 0.32 has a class for that, older versions raise ValueError."""
    return isinstance(error, ValueError) or any(base.__name__ == "VLLMClientError" for base in type(error).__mro__)


class Sample:
    """One engine request; a request has ``n`` of them."""

    def __init__(self, request: Request, state: Any, submitted: int) -> None:
        self.request, self.state, self.submitted = request, state, submitted
        self.ended = self.preemptions = self.stall = self.preempted_at = 0
        self.finish = ""

    def finished(self, reason: str) -> None:
        self.finish, self.ended = reason, time.monotonic_ns()
        if not self.request.streamed and all(sample.finish for sample in self.request.samples):
            self.request.ended(None)

    def event(self, kind: str, at: int) -> None:
        if kind == "PREEMPTED":
            self.preemptions, self.preempted_at = self.preemptions + 1, at
        elif kind == "SCHEDULED" and self.preempted_at:
            self.stall, self.preempted_at = self.stall + at - self.preempted_at, 0

    def timeline(self, ended: int, error: dict[str, Any]) -> Timeline:
        state, stats, detokenizer = self.state, self.state.stats, self.state.detokenizer
        cut = self.finish in ("", "abort", "error")
        # The engine's count may run ahead of the output where a stop string cut it.
        tokens = stats.num_generation_tokens if detokenizer is None else detokenizer.num_output_tokens()
        answered = tokens > 0 or (detokenizer is None and not cut)
        queued, scheduled = nanoseconds(stats.queued_ts), nanoseconds(stats.scheduled_ts)
        return self.request.sample(
            ended=self.ended or ended,
            submitted=self.submitted,
            scheduled=scheduled,
            first_token=nanoseconds(stats.first_token_ts) if answered else None,
            last_token=nanoseconds(stats.last_token_ts) if answered and not cut else None,
            cut_known=scheduled is not None,  # told with the first output only
            finish_reasons=(self.finish,) if self.finish else (),
            prompt_tokens=state.prompt_len,
            cached_tokens=state.num_cached_tokens,
            output_tokens=tokens,
            preemptions=self.preemptions,
            preemption_stall=self.stall,
            attributes={"otel_llm.engine.queue_time": (scheduled - queued) / 1e9} if queued and scheduled else {},
            **(error if cut else {}),
        )


class Request(Recording):
    """A call of generate(); watches the stream that its caller reads, if there is one."""

    def __init__(self, call: Call, probe: Probe, operation: str) -> None:
        config = getattr(call.instance, "llm_engine", call.instance).model_config
        adapter = call.get("lora_request")
        self.samples: list[Sample] = []
        self.streamed = False
        super().__init__(
            probe.emit,
            engine="vllm",
            operation=operation,
            model=served_model(config) if adapter is None else adapter.lora_name,
            request_id=call.get("request_id"),
            context=probe.capture(call.get("trace_headers")),
        )

    def started(self) -> None:
        # Not in generate(): a caller may make several streams before it reads one.
        self.streamed, self.received = True, time.monotonic_ns()
        current.set(self)

    def item(self, output: Any) -> None:
        if output.finished:
            self.ended(None)

    def ended(self, error: BaseException | None) -> None:
        if not self.open:
            return
        dead = type(error).__module__ == "vllm.v1.engine.exceptions"
        outcome, reason = ending(error, accepted=bool(self.samples) or dead)
        finishes = {sample.finish for sample in self.samples}
        if error is None and finishes & {"abort", "error"}:
            outcome, reason = ("abort", "abort") if "abort" in finishes else ("error", "engine")
        now, failure = time.monotonic_ns(), {"outcome": outcome, "error_type": reason}
        self.close(outcome, reason, [sample.timeline(now, failure) for sample in self.samples], ended=now)
        for sample in self.samples:
            sample.state = None  # breaks the cycle with vLLM's state
