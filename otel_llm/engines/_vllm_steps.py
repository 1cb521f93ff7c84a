"""
What the engine core does in a step. Not an engine: files that start with ``_`` are none.

Batches are known to the core alone: a frontend sees outputs, and a chunk of a
prompt has none. The core's counts ride to a frontend beside the trace headers
of an output, several steps at a time, so that each step reaches one frontend,
and the core needs neither an exporter nor a clean exit.
Upstream: vllm/v1/core/sched/{scheduler,output}.py, vllm/v1/engine/core.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Hook, Probe, argument

STEPS: Final = "otel-llm-steps"
"""``index;requests tokens[ prefill seconds];...``, one part per step since the last output."""
STEPS_LIMIT: Final = 256
"""Steps that may wait for an output, or for their own end; later ones are left out."""
STEPS_TOLD: Final = 16
"""Steps told at once, while the engine is busy: each telling costs both processes."""


class Steps:
    """The steps of one scheduler that no frontend has been told of."""

    def __init__(self, scheduler: Any) -> None:
        parallel = scheduler.vllm_config.parallel_config
        self.index = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
        self.begun: dict[int, float] = {}
        self.ended = 0.0
        self.waiting: list[str] = []

    def begin(self, scheduled: Any, at: float, *, resting: bool) -> None:
        """Remember when this was scheduled; under async scheduling the step before still runs, if not ``resting``."""
        self.ended = at if resting else self.ended  # a core in its caller's process keeps a step unread over a pause
        if len(self.begun) < STEPS_LIMIT:
            self.begun[id(scheduled)] = at

    def end(self, scheduled: Any, outputs: Any, now: float, *, busy: bool) -> None:
        """Count the step, and tell the first frontend that gets an output: soon if busy, now if this was the last."""
        begun, tokens = self.begun.pop(id(scheduled), None), scheduled.total_num_scheduled_tokens
        if not tokens:
            return
        if len(self.waiting) < STEPS_LIMIT:
            step = f"{len(scheduled.num_scheduled_tokens)} {tokens}"
            if begun is not None:
                step += f" {prefill_tokens(scheduled)} {now - max(begun, self.ended):.6f}"
            self.waiting.append(step)
        self.ended = now
        if busy and len(self.waiting) < STEPS_TOLD:
            return
        for frontend in outputs.values():
            if frontend.outputs:
                first = frontend.outputs[0]
                told = ";".join((str(self.index), *self.waiting))
                first.trace_headers = {**(first.trace_headers or {}), STEPS: told}
                self.waiting.clear()
                return


def prefill_tokens(scheduled: Any) -> int:
    """Tokens of prompts in this step, those that a preempted request computes again included."""
    each, known = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    prefill = {new.req_id for new in scheduled.scheduled_new_reqs}
    if 0 in (outputs := known.num_output_tokens):
        prefill.update(request for request, count in zip(known.req_ids, outputs, strict=True) if not count)
    drafts = scheduled.scheduled_spec_decode_tokens
    drafted = sum(len(tokens) for request, tokens in drafts.items() if request not in prefill)
    tokens: int = sum(each[request] for request in prefill)
    # A request in decode has one token, and its drafts. Where there are more, some are computed again.
    if scheduled.total_num_scheduled_tokens - tokens > len(each) - len(prefill) + drafted:
        prefill.update(request for request, count in each.items() if count > 1 + len(drafts.get(request, ())))
        tokens = sum(each[request] for request in prefill)
    return tokens


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional: a core without otel-llm says nothing of its steps."""

    def guarded(work: Callable[..., None], place: str, *about: Any) -> None:
        try:
            if probe.breaker.closed:
                work(*about)
        except Exception as error:
            probe.breaker.swallow(place, error)

    def begin(scheduler: Any, scheduled: Any, at: float, resting: bool) -> None:
        _of(scheduler).begin(scheduled, at, resting=resting)

    def schedule(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
            at, resting = time.monotonic(), not getattr(self, "running", True)
            scheduled = original(self, *args, **kwargs)
            guarded(begin, "Scheduler.schedule", self, scheduled, at, resting)
            return scheduled

        return schedule

    def update(original: Callable[..., Any]) -> Callable[..., Any]:
        read_scheduled = argument(original, "scheduler_output")

        def end(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            scheduled = read_scheduled(args, kwargs)
            _of(scheduler).end(scheduled, outputs, time.monotonic(), busy=bool(scheduler.running))

        @functools.wraps(original)
        def update_from_output(self: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = original(self, *args, **kwargs)
            guarded(end, "Scheduler.update_from_output", self, args, kwargs, outputs)
            return outputs

        return update_from_output

    scheduler = "vllm.v1.core.sched.scheduler:Scheduler."
    detail = (Hook((scheduler + "schedule",), replacement=schedule, required=False),) if probe.step_detail else ()
    return (
        *detail,
        Hook((scheduler + "update_from_output",), replacement=update, required=False),
    )


def _of(scheduler: Any) -> Steps:
    found: Steps | None = getattr(scheduler, KEY, None)
    if found is None:
        setattr(scheduler, KEY, found := Steps(scheduler))
    return found
