"""Where a finished timeline becomes telemetry."""

from __future__ import annotations

from typing import cast

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_llm import conventions
from otel_llm.config import Targets
from otel_llm.recording import TokenGaps
from otel_llm.telemetry.client import ClientWriter
from otel_llm.telemetry.context import Captured
from otel_llm.telemetry.instruments import Loss, MetricWriter
from otel_llm.telemetry.spans import SpanWriter
from otel_llm.timeline import Timeline


class Recorder:
    """Spans through one provider, metrics through another; either may be None."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        *,
        public_endpoint: bool = False,
        targets: Targets | None = None,
        loss: Loss | None = None,
    ) -> None:
        scope = conventions.SCOPE
        self._spans = (
            None
            if tracer_provider is None
            else SpanWriter(tracer_provider.get_tracer(scope), public_endpoint=public_endpoint)
        )
        self._metrics = None if meter_provider is None else MetricWriter(meter_provider.get_meter(scope), targets, loss)
        self.clients = ClientWriter(
            None if tracer_provider is None else tracer_provider.get_tracer(scope),
            None if meter_provider is None else meter_provider.get_meter(scope),
            None if self._metrics is None else self._metrics.network,
        )

    def record(self, timeline: Timeline | TokenGaps) -> None:
        """Write the request once. ``timeline.context`` is what ``capture`` returned, or None."""
        if isinstance(timeline, TokenGaps):
            if self._metrics is not None:
                self._metrics.write_gaps(timeline)
            return
        captured = cast("Captured | None", timeline.context)
        context = Context() if captured is None else captured.context
        phases = timeline.phases()
        if self._spans is not None:
            context = self._spans.write(timeline, phases, context)
        if self._metrics is not None:
            self._metrics.write(timeline, phases, context)
