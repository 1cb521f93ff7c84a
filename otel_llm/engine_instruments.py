"""The rows of ``conventions`` that tell of an engine, not of its requests."""

from __future__ import annotations

from typing import Final

from otel_llm.instrument_rows import BATCH_REQUESTS, STEP_TOKENS, TOKEN_SECONDS, Attribute, Instrument

_ENGINE: Final = ("gen_ai.provider.name", "gen_ai.request.model", "otel_llm.engine.index")
_GAUGE: Final = (*_ENGINE, "otel_llm.engine.id")

ENGINE_ATTRIBUTES: Final = (
    Attribute("otel_llm.engine.index", "int", "Which of the engines that serve a model side by side (data parallel)."),
    Attribute(
        "otel_llm.engine.id",
        "string",
        "Of a gauge: the same in all processes that are told of one engine, else that of the process.",
    ),
    Attribute("otel_llm.state", "string", "Where the engine's scheduler has a request.", ("waiting", "running")),
)

ENGINE_INSTRUMENTS: Final = (
    Instrument(
        "otel_llm.engine.requests",
        "observable_gauge",
        "{request}",
        "Requests that the engine's scheduler holds. Of one otel_llm.engine.id and index, the highest counts.",
        (*_GAUGE, "otel_llm.state"),
    ),
    Instrument(
        "otel_llm.engine.kv_cache.usage",
        "observable_gauge",
        "{fraction}",
        "Share of the KV cache in use, 0 to 1.",
        _GAUGE,
    ),
    Instrument(
        "otel_llm.engine.sleep_level",
        "observable_gauge",
        "{level}",
        "0 awake, 1 weights offloaded, 2 weights discarded; once the engine has been put to sleep.",
        _GAUGE,
    ),
    Instrument(
        "otel_llm.engine.prefix_cache.queries",
        "observable_counter",
        "{token}",
        "Prompt tokens that the engine looked up in its prefix cache.",
        _ENGINE,
    ),
    Instrument(
        "otel_llm.engine.prefix_cache.hits",
        "observable_counter",
        "{token}",
        "Prompt tokens that it found there.",
        _ENGINE,
    ),
    Instrument(
        "otel_llm.engine.preemptions",
        "observable_counter",
        "{preemption}",
        "Times that the scheduler took a request out of the batch.",
        _ENGINE,
    ),
    Instrument(
        "otel_llm.engine.speculation.drafted",
        "observable_counter",
        "{token}",
        "Tokens proposed by speculative decoding.",
        _ENGINE,
    ),
    Instrument(
        "otel_llm.engine.speculation.accepted",
        "observable_counter",
        "{token}",
        "Proposed tokens that were kept.",
        _ENGINE,
    ),
    Instrument(
        "otel_llm.engine.batch.size",
        "histogram",
        "{request}",
        "Requests in a step of the engine (vLLM: where otel-llm runs in the engine core too).",
        _ENGINE,
        BATCH_REQUESTS,
    ),
    Instrument(
        "otel_llm.engine.step.tokens",
        "histogram",
        "{token}",
        "Tokens in a step of the engine, prompts and outputs (vLLM: where otel-llm runs in the engine core too).",
        _ENGINE,
        STEP_TOKENS,
    ),
    Instrument(
        "otel_llm.engine.step.duration",
        "histogram",
        "s",
        "Time that a step added to the engine's: the sum is its busy time (vLLM: with OTEL_LLM_STEP_DETAIL).",
        _ENGINE,
        TOKEN_SECONDS,
    ),
    Instrument(
        "otel_llm.engine.computed_tokens",
        "observable_counter",
        "{token}",
        "Tokens that went through the model, by the phase that they were for (vLLM: with OTEL_LLM_STEP_DETAIL).",
        (*_ENGINE, "otel_llm.phase"),
    ),
)
