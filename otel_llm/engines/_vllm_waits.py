"""
What a request waits for in the engine core. Not an engine: files that start with ``_`` are none.

vLLM sends no stamps of these waits. They are taken in the engine core, where
otel-llm runs there too, and ride to the frontend beside the trace headers of
the request's outputs, which vLLM passes through.
Upstream: vllm/v1/structured_output/__init__.py, vllm/v1/core/sched/scheduler.py,
vllm/distributed/kv_transfer/kv_connector.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

from otel_llm.patching import Call, Hook, Probe, Returned, argument

Steps = Generator[None, Returned, Any]
KEY: Final = "_otel_llm"
"""Where a sample hangs on the frontend's state of a request."""
GRAMMAR_READY: Final = "otel-llm-grammar-ready"
"""When the grammar of structured output was compiled, seconds of the core's monotonic clock."""
KV_TRANSFER: Final = "otel-llm-kv-transfer"
"""Seconds for which the request waited for keys and values from elsewhere."""
LONGEST: Final = 1e9
"""Seconds that make sense: 31 years, of a request or of a host."""
_LOADING: Final = "_otel_llm_loading"


def send(request: Any, key: str, seconds: float) -> None:
    """Let the frontend know, with each output of this request."""
    request.trace_headers = {**(request.trace_headers or {}), key: repr(seconds)}


def received(headers: Any, key: str) -> float | None:
    """What the engine core said, None if it said nothing that makes sense."""
    try:
        seconds = float(headers[key])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds < LONGEST else None


def waits(headers: Mapping[str, str], queued: int, queue: float | None, *, again: bool) -> dict[str, float]:
    """
    The waits by attribute, in seconds, of what the engine core said.

    ``queued`` is its stamp in nanoseconds, 0 if there is none, and ``queue``
    its queue time in seconds, None if unknown. A wait is seen to end during the
    call that schedules, whose begin is the stamp, so it is cut there: it is a
    part of the queue time. Whoever was preempted may have waited ``again``,
    after it was first scheduled.
    """
    found = {}
    ready, transfer = received(headers, GRAMMAR_READY), received(headers, KV_TRANSFER)
    if ready and queue is not None:
        found["otel_llm.engine.grammar_wait"] = max(min(ready - queued / 1e9, queue), 0.0)
    if transfer is not None:
        if queue is not None and not again:
            transfer = min(transfer, queue)
        found["otel_llm.engine.kv_transfer_wait"] = transfer
    return found


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional: a version without them is measured without them."""

    def grammar(call: Call) -> Steps:
        yield
        send(call.get("request"), GRAMMAR_READY, time.monotonic())

    def connector(_call: Call) -> Steps:
        returned = yield
        if hasattr(returned.value, "update_state_after_alloc"):
            returned.value.update_state_after_alloc = _watched(returned.value.update_state_after_alloc, probe)

    def loaded(call: Call) -> Steps:
        request = call.get("request")
        returned = yield
        begun = vars(request).pop(_LOADING, None) if returned.value is not False else None  # False: still waiting
        if begun is not None:
            before = received(request.trace_headers or {}, KV_TRANSFER) or 0.0
            send(request, KV_TRANSFER, before + time.monotonic() - begun)

    scheduler = "vllm.v1.core.sched.scheduler:Scheduler."
    structured = "vllm.v1.structured_output:StructuredOutputManager."
    factory = "vllm.distributed.kv_transfer.kv_connector.factory:KVConnectorFactory."
    return (
        Hook((structured + "_create_grammar", structured + "_async_create_grammar"), grammar, required=False),
        Hook((factory + "create_connector",), connector, required=False),
        Hook((scheduler + "_update_waiting_for_remote_kv",), loaded, required=False),
    )


def _watched(original: Callable[..., Any], probe: Probe) -> Callable[..., Any]:
    """
    Notes when a request was given its blocks: from there on it may wait for what belongs into them.

    A connector keeps it after ``uninstrument()``, which then reads the stamps no more.
    """

    read_request = argument(original, "request")

    @functools.wraps(original)
    def update_state_after_alloc(*args: Any, **kwargs: Any) -> Any:
        try:
            setattr(read_request(args, kwargs), _LOADING, time.monotonic())
        except Exception as error:
            probe.breaker.swallow("update_state_after_alloc", error)
        return original(*args, **kwargs)

    return update_state_after_alloc
