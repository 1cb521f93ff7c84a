"""
The state of the engine, as a frontend is told of it. Not an engine: files that start with ``_`` are none.

The scheduler's figures come with the messages of the engine core, each step's
to one frontend only; what is counted per request comes to the frontend that
has the request. Upstream: vllm/v1/metrics/{loggers,stats}.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

from otel_llm.engine_state import EngineState, Later
from otel_llm.engines._vllm_request import served_model
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Call, Hook, Probe, Returned, argument
from otel_llm.recording import TokenGaps

Steps = Generator[None, Returned, None]


class Watched:
    """Whose figures a manager of stat loggers is told."""

    def __init__(self, call: Call) -> None:
        self.model = served_model(call.get("vllm_config").model_config)
        self.engines = tuple(call.get("engine_idxs") or (0,))
        self.shared = call.get("vllm_config").instance_id if call.get("client_count", 1) > 1 else None
        """The id of these engines, if other API servers are told of them too."""


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """In the frontend."""

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        breaker, place = probe.breaker, "StatLoggerManager.record"
        scheduler, iteration = argument(original, "scheduler_stats"), argument(original, "iteration_stats")
        engine_index = argument(original, "engine_idx", 0)

        def read(kept: tuple[Watched, tuple[Any, ...], dict[str, Any]]) -> Iterator[TokenGaps | EngineState]:
            watched, args, kwargs = kept
            stats = iteration(args, kwargs)
            found = getattr(stats, "inter_token_latencies_iter", None)
            if found:  # one value per output of the step, nearly all of them equal
                yield TokenGaps("vllm", watched.model, Counter(found))
            preempted = getattr(stats, "num_preempted_reqs", None)
            yield _state(scheduler(args, kwargs), watched, engine_index(args, kwargs) or 0, preempted)

        later = Later(probe.emit, read, place, breaker.swallow)

        @functools.wraps(original)
        def record(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if breaker.closed and (watched := getattr(self, KEY, None)) is not None:  # else older than otel-llm
                    later.keep((watched, args, kwargs))
            except Exception as error:
                breaker.swallow(place, error)
            return original(self, *args, **kwargs)

        return record

    def slept(call: Call) -> Steps:
        yield
        watched = getattr(call.instance, KEY, None)
        if watched is not None:
            # Level 0 pauses the scheduler and frees no weights: the engine is awake.
            level = call.get("level", 0) if call.get("sleep", 0) else 0
            for index in watched.engines:
                probe.emit(EngineState("vllm", watched.model, index, sleep_level=level))

    manager = "vllm.v1.metrics.loggers:StatLoggerManager."
    return (
        Hook((manager + "record",), replacement=told),
        Hook((manager + "record_sleep_state",), slept, required=False),
    )


def _state(scheduler: Any, watched: Watched, index: int, preemptions: int | None) -> EngineState:
    if scheduler is None:
        return EngineState("vllm", watched.model, index, preemptions=preemptions)
    cache, speculation = scheduler.prefix_cache_stats, scheduler.spec_decoding_stats
    return EngineState(
        "vllm",
        watched.model,
        index,
        watched.shared,
        running=scheduler.num_running_reqs,
        # Since 0.17 those that wait for something else than room are counted apart.
        waiting=scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0),
        kv_cache_usage=scheduler.kv_cache_usage,
        prefix_cache_queries=getattr(cache, "queries", None),
        prefix_cache_hits=getattr(cache, "hits", None),
        preemptions=preemptions,
        drafted=getattr(speculation, "num_draft_tokens", None),
        accepted=getattr(speculation, "num_accepted_tokens", None),
    )
