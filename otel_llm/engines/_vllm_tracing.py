"""
Beside vLLM's own tracing. Not an engine: files that start with ``_`` are none.

One request, one span: where our spans go to the provider that vLLM would use,
its span ``llm_request`` is left out, for ours says all that it says. And the
spans of vLLM's start-up go to an application's provider only if the user asked
vLLM for traces (``--otlp-traces-endpoint``).
Upstream: vllm/tracing/otel.py, vllm/v1/engine/output_processor.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Hook, Probe

_asked: bool | None = None


def engine_starts(vllm_config: Any) -> None:
    """Note whether the user asked vLLM for traces, before the spans of its start-up."""
    global _asked
    observability = getattr(vllm_config, "observability_config", None)
    _asked = getattr(observability, "otlp_traces_endpoint", None) is not None


def sampling(state: Any) -> dict[str, Any]:
    """What vLLM's span says of the sampling parameters, from the frontend's state of a request."""
    names = {"top_p": "top_p", "max_tokens_param": "max_tokens", "temperature": "temperature"}
    found = {f"gen_ai.request.{ours}": getattr(state, theirs, None) for theirs, ours in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """All optional: a version without them is measured without them."""

    def one_span(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def do_tracing(self: Any, *args: Any, **kwargs: Any) -> Any:
            state = kwargs.get("req_state", args[1] if len(args) > 1 else None)
            if hasattr(state, KEY) and probe.breaker.closed and probe.ready():
                return None
            return original(self, *args, **kwargs)

        return do_tracing

    return (
        Hook(("vllm.v1.engine.output_processor:OutputProcessor.do_tracing",), replacement=one_span, required=False),
        Hook(("vllm.tracing.otel:trace",), replacement=_quiet, required=False),
    )


class Unasked:
    """Stands for the module ``opentelemetry.trace`` in vLLM's; gives tracers that do nothing until vLLM is asked."""

    def __init__(self, original: Any) -> None:
        self._original: Final = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tracer, or one that records nothing."""
        return self._original.NoOpTracer() if _asked is False else self._original.get_tracer(*args, **kwargs)


def _quiet(module: Any) -> Any:
    return Unasked(module)
