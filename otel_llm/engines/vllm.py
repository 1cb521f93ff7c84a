"""
vLLM (V1 engine), in the process that serves: ``AsyncLLM`` and ``LLMEngine``.

The engine core stamps scheduling and tokens on the host's monotonic clock and
sends them along with the outputs; the frontend adds submission and delivery.
Upstream: vllm/v1/engine/{async_llm,llm_engine,output_processor}.py and
vllm/v1/metrics/{stats,loggers}.py.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

from otel_llm.engines import _vllm_offline, _vllm_state, _vllm_steps, _vllm_told, _vllm_tracing, _vllm_waits
from otel_llm.engines._vllm_request import Request, current, served_model
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Call, Engine, Hook, Probe, Returned
from otel_llm.streams import watched_async

Steps = Generator[None, Returned, Any]
_stats_forced: ContextVar[bool] = ContextVar("otel_llm_vllm_stats_forced", default=False)


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    def generate(call: Call) -> None:
        chat = str(call.get("request_id")).startswith(("chatcmpl", "resp_"))
        call.kept = Request(call, probe, "chat" if chat else "text_completion")

    def encode(call: Call) -> None:
        call.kept = Request(call, probe, "embeddings", call.get("pooling_params"))

    def watch(call: Call) -> None:
        if call.error is None:
            call.value = watched_async(call.value, call.kept, probe.breaker.swallow)

    def submitted(call: Call) -> None:
        now, request = time.monotonic_ns(), current.get()
        if request is None or not request.open or call.error is not None:
            return
        state = call.instance.request_states.get(call.get("request").request_id)
        if not hasattr(state, KEY):  # else a streaming input's next chunk
            request.attach(state, now, traced=getattr(call.instance, "tracing_enabled", False))

    def finished(call: Call) -> None:
        if sample := getattr(call.get("req_state"), KEY, None):
            sample.finished(call.get("finish_reason"))

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
        Hook((v1 + "async_llm:AsyncLLM.generate",), before=generate, after=watch),
        Hook((v1 + "async_llm:AsyncLLM.encode",), before=encode, after=watch),
        Hook((v1 + "async_llm:AsyncLLM.__init__",), keep_stats),
        Hook((v1 + "llm_engine:LLMEngine.__init__",), keep_stats),
        Hook((v1 + "output_processor:OutputProcessor.add_request",), after=submitted),
        Hook((v1 + "output_processor:OutputProcessor._update_stats_from_finished",), before=finished),
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
