"""
Switched on from outside, without a line of code.

Both entry points run inside other people's start-up: they raise nothing and
import no engine.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from otel_llm import config, faults
from otel_llm.instrumentation import instrument, uninstrument


def vllm_plugin() -> None:
    """
    ``vllm.general_plugins``: runs in every vLLM process, several times.

    vLLM calls it outside any try, and before it has chosen its platform
    (vllm/plugins/__init__.py). Does nothing unless ``OTEL_LLM_ENABLED`` says so.
    """
    if config.flag(config.ENABLED):
        start()


def start() -> None:
    """``instrument()`` by the environment alone, once; a mistake in it is logged, not raised."""
    try:
        from otel_llm.instrumentation import status

        if not status().instrumented:
            instrument()
    except Exception as error:
        faults.swallow("start", error)


class Instrumentor:
    """
    ``opentelemetry_instrumentor``: what ``opentelemetry-instrument`` loads.

    Has the methods of ``BaseInstrumentor`` that a distro calls, without the
    dependency on opentelemetry-instrumentation.
    """

    def instrument(self, **_kwargs: Any) -> None:
        """Called once the distro has set the global providers."""
        start()

    def uninstrument(self, **_kwargs: Any) -> None:
        """Put back what was there."""
        uninstrument()

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: engines are found by their import, under whatever distribution name."""
        return ()
