"""
The state of continuous batching, told after each of its steps. Not an engine: files that start with ``_`` are none.

One thread runs the steps of a manager: what it prepares, it updates in the
same order, at most two steps later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any, Final

from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.engines._transformers_batched import FOLDER, samples
from otel_llm.engines._transformers_model import model_name
from otel_llm.patching import Call, Hook, Probe, Returned

Steps = Generator[None, Returned, Any]


class Loop:
    """The generation loop of one manager."""

    def __init__(self, manager: Any, probe: Probe) -> None:
        self._manager, self._emit = manager, probe.emit
        self._model = model_name(manager.model)
        self._prepared: deque[tuple[int, int, int, int]] = deque(maxlen=2)
        self._updated = self._preemptions = 0
        self._queries: int | None = None
        self._hits: int | None = None
        self._match: tuple[str, int] | None = None

    def prepared(self, batch: list[Any]) -> None:
        """The inputs of a step are about to be built; a request whose cache lacks a part of its prompt is prefilled."""
        tokens = prefill = 0
        for state in (future.state for future in batch):
            tokens += len(state.tokens_to_process)
            if state.position_offset < len(state.initial_tokens):
                prefill += len(state.tokens_to_process)
        self._prepared.append((time.monotonic_ns(), len(batch), tokens, prefill))

    def updated(self) -> None:
        """The results of the oldest step that was prepared are on the host."""
        now = time.monotonic_ns()
        if self._prepared:
            begin, requests, tokens, prefill = self._prepared.popleft()
            duration = (now - max(begin, self._updated)) / 1e9
            self._emit(EngineStep("transformers", self._model, 0, requests, tokens, prefill, duration))
        self._updated = now
        self.tell()

    def found(self, key: str, tokens: int) -> None:
        """So much of a waiting request's prompt is in the cache, should it be admitted now."""
        self._match = key, tokens

    def admitted(self, key: str, prompt: int) -> int | None:
        """A request enters the batch for the first time; return how much of its prompt came from the cache."""
        if self._match is None or self._match[0] != key:
            return None
        (_, hits), self._match = self._match, None
        self._queries, self._hits = (self._queries or 0) + prompt, (self._hits or 0) + hits
        return hits

    def preempted(self) -> None:
        """A request that had been taken out of the batch is back in it."""
        self._preemptions += 1

    def tell(self) -> None:
        """Emit the state as it is now."""
        processor = self._manager.batch_processor
        if processor is None:
            return
        scheduler = processor.scheduler
        state = EngineState(
            engine="transformers",
            model=self._model,
            running=len(scheduler.active_requests),
            waiting=len(scheduler.waiting_requests) + self._manager.input_queue.qsize(),
            kv_cache_usage=_usage(processor.cache),
            prefix_cache_queries=self._queries,
            prefix_cache_hits=self._hits,
            preemptions=self._preemptions,
        )
        if self._queries is not None:
            self._queries = self._hits = 0
        self._preemptions = 0
        self._emit(state)


def _usage(cache: Any) -> float:
    if hasattr(cache, "compute_free_capacity"):  # from 5.19
        return 1.0 - float(cache.compute_free_capacity())
    return 1.0 - float(cache.get_num_free_blocks()) / float(cache.num_blocks)


running: Final[ContextVar[Loop | None]] = ContextVar("otel_llm_transformers_loop", default=None)
"""The loop that this thread runs."""


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional."""

    def run(call: Call) -> Steps:
        loop = Loop(call.instance, probe)
        token = running.set(loop)
        yield
        running.reset(token)
        loop.tell()
        for sample in samples(call.instance.input_queue.queue):
            sample.end("abort", "stopped")

    def prepare(call: Call) -> Steps:
        loop = running.get()
        if loop is not None:
            loop.prepared(call.get("requests_in_batch"))
        yield

    def update(_call: Call) -> Steps:
        loop = running.get()
        returned = yield
        if loop is not None and returned.error is None:
            loop.updated()

    def search(call: Call) -> Steps:
        loop = running.get()
        returned = yield
        if loop is not None and returned.error is None:
            loop.found(call.get("request_id"), returned.value)

    api = FOLDER + "continuous_api:"
    return (
        Hook((api + "ContinuousBatchingManager._run_generation_loop",), run, required=False),
        Hook((api + "ContinuousBatchProcessor.update_batch",), update, required=False),
        Hook((FOLDER + "input_outputs:ContinuousBatchingIOs.prepare_batch_tensors",), prepare, required=False),
        Hook((FOLDER + "cache:PagedAttentionCache.search_prefix_match",), search, required=False),
    )
