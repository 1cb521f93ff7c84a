"""
Histograms and counters that are added up here and handed over when they are exported.

One ``record`` of the SDK takes some 10 µs of the serving thread, and a request
makes a dozen of them; adding to a bucket takes a fraction of one. What leaves
is what the SDK would have sent: cumulative explicit-bucket points in the same
scope, with exemplars. Only for a pipeline of our own.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Counter, Exemplar, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.view import DefaultAggregation, ExplicitBucketHistogramAggregation
from opentelemetry.trace import get_current_span
from opentelemetry.util.types import Attributes

SERIES_LIMIT = 2000
"""Series per instrument, the SDK's own limit; what comes later goes to the overflow series."""

_OVERFLOW = (("otel.metric.overflow", True),)
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class Series:
    """One series of a histogram; a counter uses its total."""

    __slots__ = ("attributes", "bounds", "counts", "exemplars", "highest", "lowest", "number", "total")

    def __init__(self, attributes: dict[str, Any], bounds: tuple[float, ...]) -> None:
        self.attributes, self.bounds = attributes, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.number = 0
        self.total: float = 0
        self.lowest, self.highest = math.inf, -math.inf
        self.exemplars: dict[int, Exemplar] = {}


class _Bulk(ABC):
    """What both kinds of instrument share. Those of one scope have one lock, so that a request takes it once."""

    def __init__(
        self, lock: threading.Lock, name: str, unit: str, description: str, bounds: Sequence[float] = ()
    ) -> None:
        self._about = (name, description, unit)
        self._bounds = tuple(bounds)
        self._series: dict[Any, Series] = {}
        self._lock = lock
        self._start = time.time_ns()

    def bind(self, attributes: Attributes) -> Series:
        """Return the series of these attributes, for ``record_all``."""
        with self._lock:
            return self._of(tuple((attributes or {}).items()))

    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None, times: int = 1) -> None:
        """Count one measurement, or several of the same value."""
        key = tuple((attributes or {}).items())
        with self._lock:
            _add(((self._series.get(key) or self._of(key), amount),), context, times)

    def record_all(self, measured: Iterable[tuple[Series, float]], context: Context | None) -> None:
        """Count one measurement of each of these series, of any instrument of this scope."""
        with self._lock:
            _add(measured, context, 1)

    def collect(self, now: int) -> Metric | None:
        """Return all series that have measurements, None if there are none; an exemplar is handed out once."""
        now = max(now, self._start)  # the clock may have been set back
        with self._lock:
            kept = [series for series in self._series.values() if series.number]
            data = self._data(kept, now) if kept else None
            for series in kept:
                series.exemplars = {}
        name, description, unit = self._about
        return None if data is None else Metric(name, description, unit, data)

    def _of(self, key: Any) -> Series:
        if key not in self._series and len(self._series) >= SERIES_LIMIT:
            key = _OVERFLOW
        return self._series.setdefault(key, Series(dict(key), self._bounds))

    @abstractmethod
    def _data(self, kept: list[Series], now: int) -> Any:
        """Make the points of one kind of instrument."""


def _add(measured: Iterable[tuple[Series, float]], context: Context | None, times: int) -> None:
    """The least that the serving thread can do for a measurement."""
    span = get_current_span(context).get_span_context()
    sampled = span.trace_flags.sampled
    for series, amount in measured:
        index = bisect_left(series.bounds, amount)
        series.counts[index] += times
        series.number += times
        series.total += amount * times
        if amount < series.lowest:
            series.lowest = amount
        if amount > series.highest:
            series.highest = amount
        if sampled and index not in series.exemplars:  # one per bucket and export
            series.exemplars[index] = Exemplar({}, amount, time.time_ns(), span.span_id, span.trace_id)


class _BulkHistogram(_Bulk, api.Histogram):
    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self.add(amount, attributes, context)

    def _data(self, kept: list[Series], now: int) -> HistogramData:
        points = [
            HistogramDataPoint(
                series.attributes, self._start, now, series.number, series.total, list(series.counts),
                self._bounds, series.lowest, series.highest, list(series.exemplars.values()),
            )
            for series in kept
        ]  # fmt: skip
        return HistogramData(points, _CUMULATIVE)


class _BulkCounter(_Bulk, api.Counter):
    def _data(self, kept: list[Series], now: int) -> Sum:
        points = [
            NumberDataPoint(series.attributes, self._start, now, series.total, list(series.exemplars.values()))
            for series in kept
        ]
        return Sum(points, _CUMULATIVE, is_monotonic=True)


class BulkMeter(api.NoOpMeter):
    """Makes bulk histograms and counters; what is observed at collection is the SDK's."""

    def __init__(self, inner: api.Meter, name: str, instruments: list[_Bulk], drain: Callable[[], None]) -> None:
        super().__init__(name)
        self._inner, self._instruments, self._drain = inner, instruments, drain
        self._lock = threading.Lock()

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> api.Histogram:
        """With the bounds of the advisory, which every histogram of ours has."""
        made = _BulkHistogram(self._lock, name, unit, description, explicit_bucket_boundaries_advisory or ())
        self._instruments.append(made)
        return made

    def create_counter(self, name: str, unit: str = "", description: str = "") -> api.Counter:
        """Cumulative and monotonic."""
        made = _BulkCounter(self._lock, name, unit, description)
        self._instruments.append(made)
        return made

    def create_observable_counter(
        self,
        name: str,
        callbacks: Sequence[Any] | None = None,
        unit: str = "",
        description: str = "",
    ) -> api.ObservableCounter:
        """Left to the SDK: one always reports, or the reader would not call its exporter."""
        return self._inner.create_observable_counter(name, self._drained(callbacks), unit, description)

    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[Any] | None = None,
        unit: str = "",
        description: str = "",
    ) -> api.ObservableGauge:
        """Left to the SDK."""
        return self._inner.create_observable_gauge(name, self._drained(callbacks), unit, description)

    def _drained(self, callbacks: Sequence[Any] | None) -> Sequence[Any]:
        """They run before ``complete``, so all that it adds has been recorded by then too."""

        def after(callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def observe(options: Any) -> Any:
                self._drain()
                return callback(options)

            return observe

        return [after(callback) for callback in callbacks or ()]


class BulkMeterProvider(api.MeterProvider):
    """Stands before the SDK's provider; its exporters add what the instruments hold."""

    def __init__(self, inner: MeterProvider, drain: Callable[[], None] = lambda: None) -> None:
        """``drain`` records what waits to be recorded, before a collection."""
        self._inner, self._drain = inner, drain
        self._instruments: dict[str, list[_Bulk]] = {}

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> api.Meter:
        """Meters of the same name share their scope."""
        inner = self._inner.get_meter(name, version, schema_url, attributes)
        return BulkMeter(inner, name, self._instruments.setdefault(name, []), self._drain)

    def complete(self, data: MetricsData) -> MetricsData:
        """Return the data with what the instruments hold, each in its scope."""
        now = time.time_ns()
        return MetricsData(
            [
                replace(resource, scope_metrics=[self._with_ours(scope, now) for scope in resource.scope_metrics])
                for resource in data.resource_metrics
            ]
        )

    def _with_ours(self, scope: ScopeMetrics, now: int) -> ScopeMetrics:
        # In the SDK's own entry: the encoder lets a second one of the same scope replace it.
        found = (instrument.collect(now) for instrument in self._instruments.get(scope.scope.name, ()))
        return replace(scope, metrics=[*scope.metrics, *(metric for metric in found if metric is not None)])


def takes_bulk(exporter: MetricExporter) -> bool:
    """Whether an exporter wants what bulk instruments make: cumulative points with explicit buckets."""
    temporality = exporter._preferred_temporality or {}
    aggregation = (exporter._preferred_aggregation or {}).get(Histogram)
    cumulative = all(temporality.get(kind, _CUMULATIVE) is _CUMULATIVE for kind in (Counter, Histogram))
    return cumulative and isinstance(aggregation, (type(None), DefaultAggregation, ExplicitBucketHistogramAggregation))
