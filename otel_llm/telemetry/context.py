"""The caller's telemetry context, kept for the end of the request."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_llm import edge

# W3C trace context alone: baggage from outside is never read.
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Captured(NamedTuple):
    """What ``capture`` keeps."""

    context: Context
    edge: edge.ServerEdge | None
    """The HTTP request that this one is part of, if it came through a server edge."""


def capture(headers: Mapping[str, str] | None = None, carried: contextvars.Context | None = None) -> Captured:
    """
    Return the current context; without a span in it, the one that W3C headers carry.

    ``carried`` is the context of the thread that handed the work over: it
    counts where this thread knows neither a span nor an HTTP request.
    """
    current = otel_context.get_current()
    server = edge.current.get()
    if carried and server is None and not trace.get_current_span(current).get_span_context().is_valid:
        return carried.run(capture, headers)
    if server is not None:
        server.expect()
        headers = headers or server.headers
    if headers and not trace.get_current_span(current).get_span_context().is_valid:
        current = extract(headers, current)
    return Captured(current, server)


def extract(headers: Mapping[str, str], into: Context | None = None) -> Context:
    """Return the context that W3C ``traceparent`` and ``tracestate`` carry."""
    return _PROPAGATOR.extract(headers, into)


def inject(context: Context) -> dict[str, str]:
    """Return the W3C headers of the span in this context."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def application_tracer_provider() -> trace.TracerProvider | None:
    """The provider that the service has set, None if it has set none."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider


def application_meter_provider() -> metrics.MeterProvider | None:
    """The provider that the service has set, None if it has set none."""
    provider = metrics.get_meter_provider()
    # The API exports no name for the placeholder that it returns until one is set.
    return None if type(provider).__name__ == "_ProxyMeterProvider" else provider
