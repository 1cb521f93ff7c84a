"""A vLLM request in flight. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from otel_llm.engines._vllm_sample import Sample
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Probe
from otel_llm.recording import Draft, Recording
from otel_llm.streams import watched_async
from otel_llm.timeline import Outcome, ending

current: Final[ContextVar[Request | None]] = ContextVar("otel_llm_vllm_request", default=None)
"""The request whose engine requests are being submitted in this task."""


def pooling_operation(params: Any) -> str | None:
    """What is asked of a model that generates nothing; None if it is one that does."""
    if type(params).__name__ != "PoolingParams":
        return None
    task = getattr(params, "task", None) or "embed"
    return "embeddings" if "embed" in task else "classify"


def served_model(config: Any) -> str:
    """The name that clients know the model by; the first one if it has several."""
    served = config.served_model_name
    return served if isinstance(served, str) else served[0]


class Request(Recording):
    """A call of generate(); watches the stream that its caller reads, if there is one."""

    engine = "vllm"
    streamed = False

    def __init__(
        self,
        engine: Any,
        given: Mapping[str, Any],
        probe: Probe,
        operation: str,
        asked: Any = None,
        emit: Callable[[Draft], None] | None = None,
    ) -> None:
        """
        ``given`` are the arguments of the call by name.

        ``asked`` are the parameters, if they can be those of a model that generates nothing.
        """
        self.operation, self._asked, self.request_id = operation, asked, given.get("request_id")
        self.samples: list[Sample] = []
        self._config, self._adapter = engine.model_config, given.get("lora_request")
        super().__init__(emit or probe.emit, probe.capture(given.get("trace_headers")), probe.breaker.swallow)

    def attach(self, state: Any, submitted: int, *, traced: bool) -> None:
        """vLLM has made its state of one engine request, which is about to be handed to the core."""
        sample = Sample(self, state, submitted, traced)
        setattr(state, KEY, sample)
        self.samples.append(sample)

    def watched(self, stream: Any, error: BaseException | None) -> Any:
        """``generate`` has returned its stream; return what tells of it."""
        return None if error is not None else watched_async(stream, self, self.swallow)

    def started(self) -> None:
        # Not in generate(): a caller may make several streams before it reads one.
        self.streamed, self.received = True, time.monotonic_ns()
        current.set(self)

    def item(self, output: Any) -> None:
        if output.finished:
            self.ended(None)

    def sample_ended(self, now: int) -> None:
        """One of its samples has; nobody reads a stream whose end would be its own."""
        if len(self.samples) == 1 or all(sample.ended for sample in self.samples):
            self.close("ok", None, ended=now)

    def ended(self, error: BaseException | None) -> None:
        if not self.open:
            return
        now, dead = time.monotonic_ns(), type(error).__module__ == "vllm.v1.engine.exceptions"
        outcome, reason = ending(error, accepted=bool(self.samples) or dead)
        if all(sample.ended for sample in self.samples):
            self.close(outcome, reason, ended=now)
        else:  # vLLM has not heard of the end, and goes on for a moment
            marks = self._read(now, outcome, reason)
            self.close(marks.pop("outcome"), marks.pop("error_type"), **marks)

    def late(self) -> Mapping[str, Any]:
        """What vLLM's states say, which change no more once all of them have finished."""
        return self._read(self._marks["ended"], self._outcome, self._error_type)

    def _read(self, now: int, outcome: Outcome, reason: str | None) -> dict[str, Any]:
        self.operation = pooling_operation(self._asked) or self.operation
        self.model = served_model(self._config) if self._adapter is None else self._adapter.lora_name
        samples, self.samples = self.samples, []
        finishes = {sample.finish for sample in samples}
        if outcome == "ok" and "abort" in finishes:
            outcome, reason = "abort", "abort"
        elif outcome == "ok" and "error" in finishes:
            outcome, reason = "error", "engine"
        failure = {"outcome": outcome, "error_type": reason}
        try:
            if len(samples) == 1:  # nearly every request: the sample is the request
                return {"ended": now, **failure, **samples[0].marks(now, outcome)[1]}
            return {"ended": now, **failure, "samples": [sample.timeline(now, failure) for sample in samples]}
        finally:
            for sample in samples:
                sample.state = None  # breaks the cycle with vLLM's state
