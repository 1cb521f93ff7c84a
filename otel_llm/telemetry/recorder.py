"""Where a finished request becomes telemetry."""

from __future__ import annotations

from typing import cast

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_llm import conventions
from otel_llm.config import Targets
from otel_llm.engine_state import Emission, EngineState, EngineStep, Later
from otel_llm.recording import Draft, TokenGaps
from otel_llm.telemetry.client import ClientWriter
from otel_llm.telemetry.context import Captured
from otel_llm.telemetry.engine import EngineWriter
from otel_llm.telemetry.instruments import Loss, MetricWriter
from otel_llm.telemetry.spans import SpanMakers, SpanWriter, maker
from otel_llm.timeline import Timeline


class Recorder:
    """Spans through one provider, metrics through another; either may be None."""

    def __init__(
        self,
        tracer_provider: TracerProvider | SpanMakers | None,
        meter_provider: MeterProvider | None,
        *,
        public_endpoint: bool = False,
        targets: Targets | None = None,
        loss: Loss | None = None,
    ) -> None:
        scope, spans = conventions.SCOPE, maker(tracer_provider)
        self._spans = None if tracer_provider is None else SpanWriter(spans, public_endpoint=public_endpoint)
        self._metrics = None if meter_provider is None else MetricWriter(meter_provider.get_meter(scope), targets, loss)
        self._engine = None if meter_provider is None else EngineWriter(meter_provider.get_meter(scope))
        self.clients = ClientWriter(
            spans,
            None if meter_provider is None else meter_provider.get_meter(scope),
            None if self._metrics is None else self._metrics.network,
        )

    def record(self, said: Emission) -> None:
        """Write what an engine said, once."""
        if isinstance(said, (EngineState, EngineStep)):
            if self._engine is not None:
                self._engine.write(said)
        elif isinstance(said, TokenGaps):
            if self._metrics is not None:
                self._metrics.write_gaps(said)
        elif isinstance(said, Later):
            for each in said.told():
                self.record(each)
        elif isinstance(said, Draft):
            if (timeline := said.timeline()) is not None:
                self._request(timeline)
        else:
            self._request(said)

    def _request(self, timeline: Timeline) -> None:
        # The context is what ``capture`` returned, or None.
        captured = cast("Context | Captured | None", timeline.context)
        context = captured.context if isinstance(captured, Captured) else captured or Context()
        phases = timeline.phases()
        if self._spans is not None:
            context = self._spans.write(timeline, phases, context)
        if self._metrics is not None:
            self._metrics.write(timeline, phases, context)
