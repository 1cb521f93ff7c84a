"""Instruments of a meter, made from the conventions table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from opentelemetry import metrics as api
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from otel_llm import conventions, faults, sanitize
from otel_llm.config import Targets
from otel_llm.recording import TokenGaps
from otel_llm.telemetry.slo import judge
from otel_llm.timeline import Phase, Timeline

Labels = dict[str, str]

MODEL_LIMIT = 100
"""Distinct model names on metrics; later ones are ``_other``."""


class Loss(Protocol):
    """What a pipeline knows of its own losses, per kind of telemetry."""

    def exported(self) -> dict[str, int]:
        """Accepted by the collector."""
        ...

    def dropped(self) -> dict[str, int]:
        """Lost, for whatever reason."""
        ...

    def capped(self) -> dict[str, int]:
        """Never made, because too many are sampled."""
        ...


def histogram(meter: Meter, name: str) -> Histogram:
    """Make the histogram of this name, as the table has it."""
    row = conventions.INSTRUMENTS[name]
    return meter.create_histogram(name, row.unit, row.description, explicit_bucket_boundaries_advisory=row.buckets)


class MetricWriter:
    """Records each request once."""

    def __init__(self, meter: Meter, targets: Targets | None, loss: Loss | None) -> None:
        self._meter = meter
        self._targets = targets
        self._models: set[str] = set()
        self._duration = self._histogram("gen_ai.server.request.duration")
        self._first_token = self._histogram("gen_ai.server.time_to_first_token")
        self._per_token = self._histogram("gen_ai.server.time_per_output_token")
        self._phase = self._histogram("otel_llm.request.phase.duration")
        self._gaps = self._histogram("otel_llm.request.inter_token_latency")
        self.network = self._histogram("otel_llm.network.duration")
        self._tokens = self._counter("otel_llm.request.tokens")
        self._slo = None if targets is None else self._counter("otel_llm.request.slo")
        self._observe("otel_llm.telemetry.errors", "otel_llm.fault.place", faults.errors.copy)
        if loss is not None:
            self._observe("otel_llm.telemetry.exported", "otel_llm.signal", loss.exported)
            self._observe("otel_llm.telemetry.dropped", "otel_llm.signal", loss.dropped)
            self._observe("otel_llm.telemetry.capped", "otel_llm.signal", loss.capped)

    def write(self, timeline: Timeline, phases: tuple[Phase, ...], context: Context) -> None:
        """``context`` holds the request's span: exemplars link to it."""
        labels = self._labels(timeline)
        ended = labels if timeline.error_type is None else {**labels, "error.type": sanitize.text(timeline.error_type)}
        self._record(self._duration, timeline.duration, ended, context)
        durations: Counter[str] = Counter()  # upload and stall are both network: one value per request
        for phase in phases:
            durations[phase.name] += phase.duration
        for name, duration in durations.items():
            self._record(self._phase, duration, {**labels, "otel_llm.phase": name}, context)
        method = timeline.attributes.get("otel_llm.network.method")
        if method is not None:
            how = {**labels, "otel_llm.network.method": sanitize.text(method)}
            self._record(self.network, float(timeline.attributes["otel_llm.network.duration"]) * 1e9, how, context)
        if timeline.outcome == "ok" and timeline.output_tokens:
            self._record(self._first_token, timeline.time_to_first_token(), labels, context)
            self._record(self._per_token, timeline.time_per_output_token(), labels, context)
        for kind, tokens in (
            ("input", timeline.prompt_tokens),
            ("cached_input", timeline.cached_tokens),
            ("output", timeline.output_tokens),
        ):
            counted = sanitize.count(tokens)
            if counted:
                self._tokens.add(counted, {**labels, "gen_ai.token.type": kind}, context)

        if self._slo is not None and self._targets is not None:
            verdict = judge(timeline, phases, self._targets)
            if verdict is not None:
                self._slo.add(
                    1, {**labels, "otel_llm.slo.met": verdict.met, "otel_llm.slo.cause": verdict.cause}, context
                )

    def write_gaps(self, step: TokenGaps) -> None:
        """Only where the pipeline adds measurements up: one record of the SDK per token is too dear."""
        add = getattr(self._gaps, "add", None)  # the pipeline's own histograms have it, the SDK's have not
        if add is None:
            return
        labels = {"gen_ai.provider.name": sanitize.text(step.engine), "gen_ai.request.model": self._model(step.model)}
        for seconds, times in step.gaps.items():
            if 0 <= seconds < sanitize.SECONDS_LIMIT:
                add(seconds, labels, None, times)

    def _labels(self, timeline: Timeline) -> Labels:
        return {
            "gen_ai.operation.name": sanitize.text(timeline.operation),
            "gen_ai.provider.name": sanitize.text(timeline.engine),
            "gen_ai.request.model": self._model(timeline.model),
        }

    def _model(self, model: str | None) -> str:
        if model is not None and len(self._models) < MODEL_LIMIT:
            self._models.add(model)
        return sanitize.label(model, self._models)

    @staticmethod
    def _record(histogram: Histogram, nanoseconds: float | None, labels: Labels, context: Context) -> None:
        value = sanitize.seconds(nanoseconds)
        if value is not None:
            histogram.record(value, labels, context)

    def _histogram(self, name: str) -> Histogram:
        return histogram(self._meter, name)

    def _counter(self, name: str) -> api.Counter:
        row = conventions.INSTRUMENTS[name]
        return self._meter.create_counter(name, row.unit, row.description)

    def _observe(self, name: str, key: str, read: ReadCounts) -> None:
        row = conventions.INSTRUMENTS[name]

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, {key: which}) for which, value in read().items()]

        self._meter.create_observable_counter(name, [callback], row.unit, row.description)


ReadCounts = Callable[[], Mapping[str, int]]
"""Reads counts by the value of one attribute."""
