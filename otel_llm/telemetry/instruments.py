"""Instruments of a meter, made from the conventions table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from opentelemetry import metrics as api
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.util.types import AttributeValue

from otel_llm import conventions, faults, sanitize
from otel_llm.config import Targets
from otel_llm.recording import TokenGaps
from otel_llm.telemetry.slo import judge
from otel_llm.timeline import Phase, Timeline

Labels = dict[str, AttributeValue]

MODEL_LIMIT = 100
"""Distinct model names on metrics, and as many of what servers call their engines; later ones are ``_other``."""

_KEPT = 1000
"""Values of labels whose series are kept at hand; those of others are looked up each time."""


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


def bounded(name: str | None, known: set[str]) -> str:
    """A label: the name if it is one of the first ``MODEL_LIMIT``, which ``known`` holds."""
    if name is not None and len(known) < MODEL_LIMIT:
        known.add(name)
    return sanitize.label(name, known)


class _Measured:
    """A series of an instrument that knows no series, like the SDK's."""

    def __init__(self, instrument: Histogram | api.Counter, labels: Labels) -> None:
        self._labels = labels
        self._take = instrument.record if isinstance(instrument, Histogram) else instrument.add

    def record(self, value: float, context: Context) -> None:
        self._take(value, self._labels, context)


def _record_each(found: Iterable[tuple[_Measured, float]], context: Context) -> None:
    for series, value in found:
        series.record(value, context)


class _By(dict[str, Any]):
    """Series of an instrument by the value of a label, each looked up once."""

    def __init__(self, instrument: Histogram | api.Counter, labels: Labels, further: Callable[[str], Labels]) -> None:
        super().__init__()
        self._instrument, self._labels, self._further = instrument, labels, further

    def __missing__(self, value: str) -> Any:
        made = _bound(self._instrument, {**self._labels, **self._further(value)})
        if len(self) < _KEPT:
            self[value] = made
        return made


def _label(key: str) -> Callable[[str], Labels]:
    """An empty value is none."""
    return lambda value: {key: sanitize.text(value)} if value else {}


def _slo(cause: str) -> Labels:
    return {"otel_llm.slo.met": not cause, "otel_llm.slo.cause": cause}


def _bound(instrument: Any, labels: Labels) -> Any:
    # The pipeline's own instruments can be asked for a series, the API's cannot.
    return instrument.bind(labels) if hasattr(instrument, "bind") else _Measured(instrument, labels)


class _Requests(NamedTuple):
    """The series of requests that share these labels."""

    labels: Labels
    duration: _By
    phase: _By
    network: _By
    tokens: _By
    first_token: Any
    per_token: Any
    slo: _By | None


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
        self._record_all = getattr(self._duration, "record_all", _record_each)
        self._requests: dict[tuple[str, str, str], _Requests] = {}
        self._slo = None if targets is None else self._counter("otel_llm.request.slo")
        self._observe("otel_llm.telemetry.errors", "otel_llm.fault.place", faults.errors.copy)
        if loss is not None:
            self._observe("otel_llm.telemetry.exported", "otel_llm.signal", loss.exported)
            self._observe("otel_llm.telemetry.dropped", "otel_llm.signal", loss.dropped)
            self._observe("otel_llm.telemetry.capped", "otel_llm.signal", loss.capped)

    def write(self, timeline: Timeline, phases: tuple[Phase, ...], context: Context) -> None:
        """``context`` holds the request's span: exemplars link to it."""
        of = self._series_of(timeline)
        record: list[tuple[Any, float]] = [(of.duration[timeline.error_type or ""], timeline.duration / 1e9)]
        durations: dict[str, int] = {}
        for name, start, end, _ in phases:  # upload and stall are both network: one value per request
            durations[name] = durations.get(name, 0) + end - start
        series = of.phase
        for name, duration in durations.items():
            record.append((series[name], duration / 1e9))
        extra = timeline.attributes
        if "otel_llm.network.method" in extra:
            seconds = float(extra["otel_llm.network.duration"])
            if 0.0 <= seconds < sanitize.SECONDS_LIMIT:
                record.append((of.network[str(extra["otel_llm.network.method"])], seconds))
        if timeline.outcome == "ok" and timeline.output_tokens:
            first, each = timeline.time_to_first_token(), timeline.time_per_output_token()
            if first is not None:
                record.append((of.first_token, first / 1e9))
            if each is not None:
                record.append((of.per_token, each / 1e9))
        if not record[0][1] < sanitize.SECONDS_LIMIT:  # what is part of a believable duration is believable
            record = [(series, value) for series, value in record if value < sanitize.SECONDS_LIMIT]
        for kind, tokens in (
            ("input", timeline.prompt_tokens),
            ("cached_input", timeline.cached_tokens),
            ("output", timeline.output_tokens),
        ):
            # A series begins at zero, or the rate of a database misses its first tokens.
            if (tokens or kind not in of.tokens) and (counted := sanitize.count(tokens)) is not None:
                record.append((of.tokens[kind], counted))
        if of.slo is not None and self._targets is not None:
            verdict = judge(timeline, phases, self._targets)
            if verdict is not None:
                record.append((of.slo[verdict.cause], 1))
        self._record_all(record, context)

    def write_gaps(self, step: TokenGaps) -> None:
        """Only where the pipeline adds measurements up: one record of the SDK per token is too dear."""
        add = getattr(self._gaps, "add", None)  # the pipeline's own histograms have it, the SDK's have not
        if add is None:
            return
        labels = {"gen_ai.provider.name": sanitize.text(step.engine), "gen_ai.request.model": self._model(step.model)}
        for seconds, times in step.gaps.items():
            if 0 <= seconds < sanitize.SECONDS_LIMIT:
                add(seconds, labels, None, times)

    def _series_of(self, timeline: Timeline) -> _Requests:
        key = (timeline.operation, timeline.engine, self._model(timeline.model))
        found = self._requests.get(key)
        if found is None:
            operation, engine, model = key
            labels: Labels = {
                "gen_ai.operation.name": sanitize.text(operation),
                "gen_ai.provider.name": sanitize.text(engine),
                "gen_ai.request.model": model,
            }
            found = _Requests(
                labels,
                _By(self._duration, labels, _label("error.type")),
                _By(self._phase, labels, _label("otel_llm.phase")),
                _By(self.network, labels, _label("otel_llm.network.method")),
                _By(self._tokens, labels, _label("gen_ai.token.type")),
                _bound(self._first_token, labels),
                _bound(self._per_token, labels),
                None if self._slo is None else _By(self._slo, labels, _slo),
            )
            if len(self._requests) < _KEPT:
                self._requests[key] = found
        return found

    def _model(self, model: str | None) -> str:
        return bounded(model, self._models)

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
