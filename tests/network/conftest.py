from __future__ import annotations

from collections.abc import Iterator

import pytest
from live import Recorded
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_llm


@pytest.fixture
def recorded(no_hidden_error: object) -> Iterator[Recorded]:
    """Instrumented with providers of the test's own; ends before errors are looked for."""
    found = Recorded()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(found.spans))
    otel_llm.instrument(tracer_provider=tracer_provider, meter_provider=MeterProvider([found.metrics]))
    remove = otel_llm.add_sink(found.timelines.append)
    try:
        yield found
    finally:
        remove()
        otel_llm.uninstrument()
