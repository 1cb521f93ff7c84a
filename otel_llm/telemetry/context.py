"""The caller's telemetry context, kept for the end of the request."""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_llm import edge, faults

_UNTIL_SET: Final = trace.ProxyTracerProvider()
# W3C trace context alone: baggage from outside is never read.
_PROPAGATOR: Final = TraceContextTextMapPropagator()
# What the API's function calls, not by a public name: every request asks.
_current: Final[Callable[[], Context]] = getattr(
    getattr(otel_context, "_RUNTIME_CONTEXT", None), "get_current", otel_context.get_current
)
# Where the API keeps the meter provider that was set, not a public name either.
_METERS: Final[Any] = getattr(metrics, "_internal", None)
_LONGEST_PARENT: Final = 512
_LONGEST_STATE: Final = 8192
_MOST_MEMBERS: Final = 32
_MEMBER: Final = re.compile(
    r"([a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
"""https://www.w3.org/TR/trace-context/#tracestate-header-field-values"""


class Captured:
    """
    What ``capture`` keeps of a request that is part of another: an HTTP request, or a hand-marked one.

    That is ``edge``. It waits for this one, and is told when nobody can hand
    that over any more.
    """

    __slots__ = ("context", "edge", "handed_over")

    def __init__(self, context: Context, edge: edge.Enclosing) -> None:
        self.context, self.edge = context, edge
        self.handed_over = False

    def __del__(self) -> None:
        if not self.handed_over:
            try:
                self.edge.withdraw()
            except Exception as error:
                faults.swallow("context.withdraw", error)


def capture(headers: Mapping[str, str] | None = None, carried: contextvars.Context | None = None) -> Context | Captured:
    """
    Return the current context; without a span in it, the one that W3C headers carry.

    ``carried`` is the context of the thread that handed the work over: it
    counts where this thread knows neither a span nor an HTTP request.
    """
    current, server = _current(), edge.current.get()
    if server is None and carried is None and not headers:
        return current
    if carried and server is None and not trace.get_current_span(current).get_span_context().is_valid:
        return carried.run(capture, headers)
    if server is not None:
        server.expect()
        headers = headers or server.headers
    if headers and not trace.get_current_span(current).get_span_context().is_valid:
        current = extract(headers, current)
    return current if server is None else Captured(current, server)


def extract(headers: Mapping[str, str], into: Context | None = None) -> Context:
    """
    Return the context that W3C ``traceparent`` and ``tracestate`` carry.

    The propagator logs what it cannot use, and quotes it, at every request: it is not given that.
    """
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if len(parent) > _LONGEST_PARENT:
        parent = ""
    return _PROPAGATOR.extract({"traceparent": parent, "tracestate": _usable(state)}, into)


def _usable(state: str) -> str:
    members = [member for member in (part.strip(" \t") for part in state.split(",")) if member]
    usable = len(state) <= _LONGEST_STATE and len(members) <= _MOST_MEMBERS and all(map(_MEMBER.fullmatch, members))
    return ",".join(members) if usable else ""


def inject(context: Context) -> dict[str, str]:
    """Return the W3C headers of the span in this context."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def traced_by_application() -> bool:
    """Whether the service has set a tracer provider: without the API's look into the environment, which is dear."""
    try:
        return trace._TRACER_PROVIDER is not None
    except AttributeError:  # not a public name: a proxy knows as well
        return not isinstance(_UNTIL_SET.get_tracer("otel_llm"), trace.ProxyTracer)


def metered_by_application() -> bool:
    """Whether the service has set a meter provider, without that look."""
    try:
        return _METERS._METER_PROVIDER is not None
    except AttributeError:
        return application_meter_provider() is not None


def application_tracer_provider() -> trace.TracerProvider | None:
    """The provider that the service has set, None if it has set none."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider


def application_meter_provider() -> metrics.MeterProvider | None:
    """The provider that the service has set, None if it has set none."""
    provider = metrics.get_meter_provider()
    # The API exports no name for the placeholder that it returns until one is set.
    return None if type(provider).__name__ == "_ProxyMeterProvider" else provider
