"""
vLLM (V1 engine), in the process that serves: ``AsyncLLM`` and ``LLMEngine``.

The engine core stamps scheduling and tokens on the host's monotonic clock and
sends them along with the outputs; the frontend adds submission and delivery.
Upstream: vllm/v1/engine/{async_llm,llm_engine,output_processor}.py and
vllm/v1/metrics/{stats,loggers}.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from typing import Any

from otel_llm.engines import _vllm_offline, _vllm_state, _vllm_steps, _vllm_told, _vllm_tracing, _vllm_waits
from otel_llm.engines._vllm_request import Request, current, served_model
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Call, Engine, Hook, Leave, Probe, Returned, argument

Steps = Generator[None, Returned, Any]
_stats_forced: ContextVar[bool] = ContextVar("otel_llm_vllm_stats_forced", default=False)


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    def generate(engine: Any, given: Mapping[str, Any], _kwargs: object) -> Leave:
        chat = str(given.get("request_id")).startswith(("chatcmpl", "resp_"))
        return Request(engine, given, probe, "chat" if chat else "text_completion").watched

    def encode(engine: Any, given: Mapping[str, Any], _kwargs: object) -> Leave:
        return Request(engine, given, probe, "embeddings", given.get("pooling_params")).watched

    def submitting(original: Callable[..., Any]) -> Callable[..., Any]:
        breaker, read_request = probe.breaker, argument(original, "request")

        @functools.wraps(original)
        def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
            value = original(self, *args, **kwargs)
            try:
                if breaker.closed and (request := current.get()) is not None and request.open:
                    now, state = time.monotonic_ns(), self.request_states.get(read_request(args, kwargs).request_id)
                    if not hasattr(state, KEY):  # else a streaming input's next chunk
                        request.attach(state, now, traced=getattr(self, "tracing_enabled", False))
            except Exception as error:
                breaker.swallow("OutputProcessor.add_request", error)
            return value

        return add_request

    def finishing(original: Callable[..., Any]) -> Callable[..., Any]:
        breaker, read_reason = probe.breaker, argument(original, "finish_reason")
        read_state = argument(original, "req_state")

        @functools.wraps(original)
        def _update_stats_from_finished(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if breaker.closed and (sample := getattr(read_state(args, kwargs), KEY, None)):
                    sample.finished(read_reason(args, kwargs))
            except Exception as error:
                breaker.swallow("OutputProcessor._update_stats_from_finished", error)
            return original(self, *args, **kwargs)

        return _update_stats_from_finished

    def abort(call: Call) -> Steps:
        processor, ids = call.instance, tuple(call.get("request_ids"))
        call.replace("request_ids", ids)  # it may have been an iterator
        if not call.get("internal", True):
            ids = tuple(inner for outer in ids for inner in processor.external_req_ids.get(outer, ()))
        samples = [getattr(processor.request_states.get(key), KEY, None) for key in ids]
        yield
        for sample in filter(None, samples):
            sample.finished("abort")

    def keep_stats(call: Call) -> Steps:
        _vllm_tracing.engine_starts(call.get("vllm_config"))
        token = _stats_forced.set(call.get("log_stats") is False)
        call.replace("log_stats", True)
        returned = yield
        _stats_forced.reset(token)
        if returned.error is None:
            setattr(call.instance.output_processor, KEY, served_model(call.get("vllm_config").model_config))
        probe.ready()

    def keep_quiet(call: Call) -> Steps:
        if _stats_forced.get():
            call.replace("enable_default_loggers", False)
        yield
        setattr(call.instance, KEY, _vllm_state.Watched(call))

    v1 = "vllm.v1.engine."
    return (
        Hook((v1 + "async_llm:AsyncLLM.generate",), enter=generate),
        Hook((v1 + "async_llm:AsyncLLM.encode",), enter=encode),
        Hook((v1 + "async_llm:AsyncLLM.__init__",), keep_stats),
        Hook((v1 + "llm_engine:LLMEngine.__init__",), keep_stats),
        Hook((v1 + "output_processor:OutputProcessor.add_request",), replacement=submitting),
        Hook((v1 + "output_processor:OutputProcessor._update_stats_from_finished",), replacement=finishing),
        Hook((v1 + "output_processor:OutputProcessor.abort_requests",), abort),
        Hook(("vllm.v1.metrics.loggers:StatLoggerManager.__init__",), keep_quiet),
        *_vllm_state.hooks(probe),
        *_vllm_steps.hooks(probe),
        *_vllm_told.hooks(probe),
        *_vllm_offline.hooks(probe),
        *_vllm_waits.hooks(probe),
        *_vllm_tracing.hooks(probe),
    )


ENGINE = Engine("vllm", "vllm", ("vllm.v1.engine.async_llm", "vllm.v1.engine.llm_engine"), _hooks)
