"""
THE table: every span, attribute, instrument, unit and bucket that otel-llm emits.

docs/telemetry.md and the dashboards are generated from it, and a test holds
what is emitted to it. ``gen_ai.*`` names follow the OpenTelemetry GenAI
conventions (open-telemetry/semantic-conventions-genai); ``gen_ai.latency.*``
are the keys that vLLM and SGLang share; ``otel_llm.*`` are ours, for what no
convention covers. A rename is a breaking change.
"""

from __future__ import annotations

from typing import Final

from otel_llm.client_timeline import CLIENT_PHASES, METHODS
from otel_llm.engine_instruments import ENGINE_ATTRIBUTES, ENGINE_INSTRUMENTS
from otel_llm.instrument_rows import LATENCY_SECONDS, TOKEN_SECONDS, Attribute, Instrument
from otel_llm.timeline import PHASES

__all__ = ["ATTRIBUTES", "CLIENT_SPAN", "INSTRUMENTS", "PHASE_SPAN", "REQUEST_SPAN", "RESOURCE", "SCOPE"]
__all__ += ["Attribute", "Instrument"]

SCOPE: Final = "otel_llm"
"""Instrumentation scope of all telemetry."""

_OPERATIONS: Final = ("chat", "text_completion", "embeddings", "classify", "generate_content")
_PHASES: Final = tuple(dict.fromkeys((*PHASES, *CLIENT_PHASES)))

ATTRIBUTES: Final = {
    attribute.name: attribute
    for attribute in (
        Attribute("gen_ai.operation.name", "string", "What was asked for.", _OPERATIONS),
        Attribute("gen_ai.provider.name", "string", "The engine: vllm, transformers, or the name given to `measured`."),
        Attribute(
            "gen_ai.request.model",
            "string",
            "The model. On metrics served names only, anything else is `_other`.",
        ),
        Attribute("gen_ai.request.id", "string", "The id that the caller or the server gave the request."),
        Attribute("gen_ai.request.max_tokens", "int", "Most tokens asked for, where vLLM's own tracing is on."),
        Attribute("gen_ai.request.temperature", "double", "Temperature, where vLLM's own tracing is on."),
        Attribute("gen_ai.request.top_p", "double", "Nucleus asked for, where vLLM's own tracing is on."),
        Attribute("gen_ai.request.choice.count", "int", "Samples of one prompt, if more than one."),
        Attribute("gen_ai.response.finish_reasons", "string[]", "Why generation stopped, one per sample."),
        Attribute("gen_ai.usage.input_tokens", "int", "Prompt tokens, those from a cache included."),
        Attribute("gen_ai.usage.cache_read.input_tokens", "int", "Prompt tokens whose KV entries came from a cache."),
        Attribute("gen_ai.usage.output_tokens", "int", "Tokens generated, over all samples."),
        Attribute("gen_ai.token.type", "string", "Kind of token counted.", ("input", "cached_input", "output")),
        Attribute("gen_ai.latency.time_to_first_token", "double", "Seconds from request start to first output token."),
        Attribute("gen_ai.latency.e2e", "double", "Seconds from request start to end."),
        Attribute("gen_ai.latency.time_in_queue", "double", "Seconds in the phase `queue`."),
        Attribute("gen_ai.latency.time_in_model_prefill", "double", "Seconds in the phase `prefill`."),
        Attribute("gen_ai.latency.time_in_model_decode", "double", "Seconds in the phase `decode`."),
        Attribute("gen_ai.latency.time_in_model_inference", "double", "Seconds in `prefill` and `decode` together."),
        Attribute("error.type", "string", "Class of the error, or why the request was given up. Absent when ok."),
        Attribute("otel_llm.phase", "string", "Part of a request's life; parts add up to its duration.", _PHASES),
        Attribute("otel_llm.phase.between", "string[]", "For `unsplit`: the phases that share this time."),
        Attribute("otel_llm.outcome", "string", "How the request ended.", ("ok", "abort", "error", "reject")),
        Attribute("otel_llm.preemptions", "int", "Times that the scheduler took the request out of the batch."),
        Attribute("otel_llm.preemption.stall", "double", "Seconds preempted, inside prefill or decode."),
        Attribute(
            "otel_llm.engine.queue_time",
            "double",
            "Seconds of queue by the engine's own account, which leaves out the wait in its input queue.",
        ),
        *ENGINE_ATTRIBUTES,
        Attribute(
            "otel_llm.engine.grammar_wait", "double", "Seconds of queue in which the grammar was not yet compiled."
        ),
        Attribute(
            "otel_llm.engine.kv_transfer_wait", "double", "Seconds of waiting for keys and values from elsewhere."
        ),
        Attribute(
            "otel_llm.engine.input_wait", "double", "Seconds of decode in which the engine had used up all input."
        ),
        Attribute("otel_llm.engine.draft_tokens", "int", "Tokens drafted by speculative decoding."),
        Attribute("otel_llm.engine.accepted_tokens", "int", "Drafted tokens that the model accepted."),
        Attribute(
            "otel_llm.engine.clock",
            "string",
            "`anchored`: the engine's clock is another, its stamps moved.",
            ("anchored",),
        ),
        Attribute("otel_llm.engine.draft_time", "double", "Seconds in which an assistant model drafted tokens."),
        Attribute("otel_llm.device.wait.prefill", "double", "Seconds of prefill in which the host awaited the device."),
        Attribute("otel_llm.device.wait.decode", "double", "Seconds of decode in which the host awaited the device."),
        Attribute(
            "otel_llm.network.duration",
            "double",
            "Seconds that the network took of this request, by `otel_llm.network.method`; absent if unknown.",
        ),
        Attribute("otel_llm.network.method", "string", "How the network time was measured.", METHODS),
        Attribute(
            "otel_llm.network.peer_limited", "double", "Seconds in which the peer's full buffer held up the answer."
        ),
        Attribute("server.address", "string", "Host that a client called."),
        Attribute("server.port", "int", "Port that a client called."),
        Attribute("http.response.status_code", "int", "Status of the answer to a client."),
        Attribute("http.request.resend_count", "int", "Attempts of the same request before this one, if any."),
        *(
            Attribute(f"otel_llm.client.{phase}", "double", f"Seconds of a client's time in `{phase}`.")
            for phase in CLIENT_PHASES
        ),
        Attribute("otel_llm.slo.met", "boolean", "Whether the request ended in full and met every target."),
        Attribute("otel_llm.slo.cause", "string", "The phase that took most of the time in question; empty if met."),
        Attribute("otel_llm.fault.place", "string", "Where an error of otel-llm's own was swallowed."),
        Attribute("otel_llm.signal", "string", "Kind of telemetry.", ("spans", "metrics")),
    )
}

RESOURCE: Final = {
    "otel_llm.run.id": Attribute(
        "otel_llm.run.id", "string", "A run of a load test, set in `OTEL_RESOURCE_ATTRIBUTES`."
    )
}
"""Attributes of the resource that the dashboards know."""

_REQUEST: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")

INSTRUMENTS: Final = {
    instrument.name: instrument
    for instrument in (
        Instrument(
            "gen_ai.server.request.duration",
            "histogram",
            "s",
            "Request duration, from its first to its last moment in this process; every outcome.",
            (*_REQUEST, "error.type"),
            LATENCY_SECONDS,
        ),
        Instrument(
            "gen_ai.server.time_to_first_token",
            "histogram",
            "s",
            "From request start to first output token; requests that ended in full.",
            _REQUEST,
            LATENCY_SECONDS,
        ),
        Instrument(
            "gen_ai.server.time_per_output_token",
            "histogram",
            "s",
            "(last - first token) / (output tokens - 1); requests that ended in full with two tokens or more.",
            _REQUEST,
            TOKEN_SECONDS,
        ),
        Instrument(
            "otel_llm.request.phase.duration",
            "histogram",
            "s",
            "Time of a request in one phase; the sums of all phases add up to that of gen_ai.server.request.duration.",
            (*_REQUEST, "otel_llm.phase"),
            LATENCY_SECONDS,
        ),
        Instrument(
            "otel_llm.request.inter_token_latency",
            "histogram",
            "s",
            "Between two consecutive outputs of a request, as the engine stamps them (vLLM; own pipeline only).",
            ("gen_ai.provider.name", "gen_ai.request.model"),
            TOKEN_SECONDS,
        ),
        Instrument(
            "otel_llm.network.duration",
            "histogram",
            "s",
            "Network time of a request, by the method that gave it; from a server's side alone it is an estimate.",
            (*_REQUEST, "otel_llm.network.method"),
            LATENCY_SECONDS,
        ),
        Instrument(
            "otel_llm.request.tokens",
            "counter",
            "{token}",
            "Tokens of finished requests; cached_input is the part of input that came from a cache.",
            (*_REQUEST, "gen_ai.token.type"),
        ),
        Instrument(
            "otel_llm.request.slo",
            "counter",
            "{request}",
            "Requests by whether they met all targets of `instrument(slo=...)`; goodput is the rate of those that did.",
            (*_REQUEST, "otel_llm.slo.met", "otel_llm.slo.cause"),
        ),
        *ENGINE_INSTRUMENTS,
        Instrument(
            "gen_ai.client.operation.duration",
            "histogram",
            "s",
            "A client's attempt, from its first act to the last byte of the answer; every outcome.",
            (*_REQUEST, "error.type"),
            LATENCY_SECONDS,
        ),
        Instrument(
            "gen_ai.client.operation.time_to_first_chunk",
            "histogram",
            "s",
            "From the start of a client's attempt to the first event that bears a token; attempts that ended in full.",
            _REQUEST,
            LATENCY_SECONDS,
        ),
        Instrument(
            "otel_llm.client.phase.duration",
            "histogram",
            "s",
            "Time of a client's attempt in one part; the sums add up to that of gen_ai.client.operation.duration.",
            (*_REQUEST, "otel_llm.phase"),
            LATENCY_SECONDS,
        ),
        Instrument(
            "otel_llm.telemetry.errors",
            "observable_counter",
            "{error}",
            "Errors of otel-llm's own, swallowed so that the host never sees them.",
            ("otel_llm.fault.place",),
        ),
        Instrument(
            "otel_llm.telemetry.exported",
            "observable_counter",
            "{item}",
            "Spans and metric points that the collector accepted (own pipeline only).",
            ("otel_llm.signal",),
        ),
        Instrument(
            "otel_llm.telemetry.dropped",
            "observable_counter",
            "{item}",
            "Spans and metric points lost: queue full, refused, or no collector (own pipeline only).",
            ("otel_llm.signal",),
        ),
        Instrument(
            "otel_llm.telemetry.capped",
            "observable_counter",
            "{request}",
            "Requests without spans by the cap OTEL_LLM_SAMPLED_PER_SECOND; metrics count them (own pipeline only).",
            ("otel_llm.signal",),
        ),
    )
}

REQUEST_SPAN: Final = (
    *_REQUEST,
    "gen_ai.request.id",
    "gen_ai.request.max_tokens",
    "gen_ai.request.temperature",
    "gen_ai.request.top_p",
    "gen_ai.request.choice.count",
    "gen_ai.response.finish_reasons",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.latency.e2e",
    "gen_ai.latency.time_in_queue",
    "gen_ai.latency.time_in_model_prefill",
    "gen_ai.latency.time_in_model_decode",
    "gen_ai.latency.time_in_model_inference",
    "error.type",
    "otel_llm.outcome",
    "otel_llm.preemptions",
    "otel_llm.preemption.stall",
    "otel_llm.engine.queue_time",
    "otel_llm.engine.grammar_wait",
    "otel_llm.engine.kv_transfer_wait",
    "otel_llm.engine.input_wait",
    "otel_llm.engine.draft_tokens",
    "otel_llm.engine.accepted_tokens",
    "otel_llm.engine.clock",
    "otel_llm.engine.draft_time",
    "otel_llm.device.wait.prefill",
    "otel_llm.device.wait.decode",
    "otel_llm.network.duration",
    "otel_llm.network.method",
    "otel_llm.network.peer_limited",
)
"""Attributes of the span ``{operation} {model}``, one per request and one per sample of several."""

PHASE_SPAN: Final = ("gen_ai.provider.name", "gen_ai.operation.name", "otel_llm.phase", "otel_llm.phase.between")
"""Attributes of the child spans, which are named after their phase."""

CLIENT_SPAN: Final = (
    *_REQUEST,
    "server.address",
    "server.port",
    "http.response.status_code",
    "http.request.resend_count",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.latency.e2e",
    "error.type",
    "otel_llm.outcome",
    "otel_llm.network.duration",
    "otel_llm.network.method",
    *(f"otel_llm.client.{phase}" for phase in CLIENT_PHASES),
)
"""Attributes of a client's span ``{operation} {model}``, one per attempt."""
