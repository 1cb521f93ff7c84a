"""
Continuous batching. Not an engine: files that start with ``_`` are none.

The library's own timestamps start anew when it preempts a request, because it
makes a new state of it. A sample hangs on the state, moves to the new one, and
is stamped by us: once when it is admitted, then at each token.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, Final

from otel_llm.engines import _transformers_builtin, _transformers_steps
from otel_llm.engines._transformers_batched import FOLDER, KEY, Batched, Sample, samples
from otel_llm.engines._transformers_steps import running
from otel_llm.patching import Call, Hook, Probe, Returned, resolve
from otel_llm.timeline import ending

Steps = Generator[None, Returned, Any]
_arriving: Final[ContextVar[Batched | None]] = ContextVar("otel_llm_transformers_batched", default=None)


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional: a version without continuous batching is measured without it."""

    @functools.cache
    def complete() -> bool:
        """Whether this version has them all: a request that might not be seen to end must not begin."""
        return all(resolve(hook, load=False) is not None for hook in rows)

    def add(call: Call) -> Steps:
        if not complete():
            yield
            return
        request = Batched(call, probe)
        token = _arriving.set(request)
        returned = yield
        _arriving.reset(token)
        if returned.error is not None:
            outcome, reason = ending(returned.error, accepted=False)
            request.close(outcome, reason, received=None, submitted=request.received)
        elif not request.samples and getattr(call.instance, "is_tp_driver", True):
            request.close("reject", "stopped", received=None, submitted=request.received)

    def attach(call: Call) -> Steps:
        request = _arriving.get()
        yield
        if request is not None and not request.samples:
            request.attach(call.instance)

    def status(original: Any) -> Any:
        def change(self: Any, value: Any) -> None:
            before = self._status
            original.fset(self, value)
            try:
                sample = getattr(self, KEY, None)
                if sample is not None and before.name == "PENDING" and value.name in ("PREFILLING", "DECODING"):
                    if sample.key != self.request_id:  # a further sample that begins anew, for want of memory
                        sample.preempted_at = 0
                        sample = Sample(sample.request, self.request_id, sample.prompt)
                        sample.request.samples.append(sample)
                        setattr(self, KEY, sample)
                    _admit(sample)
            except Exception as error:
                probe.breaker.swallow("RequestState.status", error)

        return property(original.fget, change, original.fdel, original.__doc__)

    def tokens(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def update_and_check_completion(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = len(self.generated_tokens)
            finished = original(self, *args, **kwargs)
            try:
                sample = getattr(self, KEY, None)
                if sample is not None and len(self.generated_tokens) > before:
                    sample.token(time.monotonic_ns())
                if sample is not None and finished:
                    ended = self.generated_tokens[-1:] and self.generated_tokens[-1] in self._eos_token_ids
                    sample.end("ok", None, ("stop" if ended else "length",))
            except Exception as error:
                probe.breaker.swallow("RequestState.update_and_check_completion", error)
            return finished

        return update_and_check_completion

    def forked(call: Call) -> Steps:
        sample = getattr(call.instance, KEY, None)
        returned = yield
        if sample is not None and returned.error is None and not hasattr(returned.value, KEY):
            setattr(returned.value, KEY, sample.twin())  # in 5.5 a fork is no copy

    def preempted(call: Call) -> Steps:
        sample = getattr(call.instance, KEY, None)
        returned = yield
        if sample is not None and returned.error is None:
            sample.preempted_at = time.monotonic_ns()
            setattr(returned.value, KEY, sample)

    def failed(call: Call) -> Steps:
        sample = getattr(call.get("state"), KEY, None)
        yield
        if sample is not None:
            sample.end("error", type(call.get("error")).__qualname__)

    def crashed(call: Call) -> Steps:
        waiting = [] if call.get("batch_processor") else list(call.instance.input_queue.queue)
        yield
        for sample in samples(waiting):  # there was nothing yet that could fail them
            sample.end("error", type(call.get("error")).__qualname__)

    def cancelled(call: Call) -> Steps:
        here = call.instance
        states = [here.active_requests.get(key) or here.waiting_requests.get(key) for key in here._requests_to_cancel]
        yield
        for sample in samples(states):
            sample.end("abort", "cancelled")
        loop = running.get()
        if loop is not None and states:
            loop.tell()

    api, state = FOLDER + "continuous_api:", FOLDER + "requests:RequestState."
    fail = api + "OutputRouter.fail_and_deliver", api + "ContinuousBatchProcessor._handle_request_error"
    rows = (
        Hook((api + "ContinuousBatchingManager.add_request",), add, required=False),
        Hook((api + "ContinuousBatchingManager._handle_critical_error",), crashed, required=False),
        Hook((state + "__post_init__",), attach, required=False),
        Hook((state + "status",), replacement=status, required=False),
        Hook((state + "update_and_check_completion",), replacement=tokens, required=False),
        Hook((state + "fork",), forked, required=False),
        Hook((state + "create_equivalent_initial_request",), preempted, required=False),
        Hook(fail, failed, required=False),  # the second before 5.17
        Hook((FOLDER + "scheduler:Scheduler.clear_cancelled_requests",), cancelled, required=False),
        *_transformers_steps.hooks(probe),
    )
    return (*rows, *_transformers_builtin.hooks(complete))


def _admit(sample: Sample) -> None:
    loop, cached = running.get(), None
    if loop is not None and sample.scheduled is None:
        cached = loop.admitted(sample.key, sample.prompt)
    elif loop is not None and sample.preempted_at:
        loop.preempted()
    sample.admitted(time.monotonic_ns(), cached)
