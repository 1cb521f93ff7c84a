"""
Exporters that count what arrived and what was lost, and never raise.

The SDK's own self-metrics report success for lost data, and one span that the
encoder cannot take loses its whole batch: hence the filter and the counts.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial

from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_EXPORT_BATCH_SIZE
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_llm import faults
from otel_llm.pipeline import otlp
from otel_llm.pipeline.replay import Replay
from otel_llm.pipeline.sampling import CappedSampler
from otel_llm.pipeline.spans import Decided, SpanQueue, breathing, setting


class Outage:
    """Loss is said once when it starts and once when it is over, for all kinds of telemetry together."""

    def __init__(self) -> None:
        self._losing: set[str] = set()

    @property
    def lasts(self) -> bool:
        """Whether something is being lost now."""
        return bool(self._losing)

    def begins(self, signal: str, cause: str) -> None:
        """The collector did not take a batch."""
        if not self._losing:
            faults.logger.warning("otel_llm: %s are being lost (%s)", signal, cause)
        self._losing.add(signal)

    def ends(self, signal: str, lost: int) -> None:
        """The collector took a batch."""
        if signal in self._losing:
            self._losing.discard(signal)
            if not self._losing:
                faults.logger.warning("otel_llm: %s are delivered again, %d were lost", signal, lost)


class Tally:
    """What became of one kind of telemetry in this process."""

    def __init__(self, signal: str, outage: Outage) -> None:
        self.signal, self._outage = signal, outage
        self.accepted = 0
        self.failed = 0
        self.rejected = 0

    def delivered(self, count: int) -> None:
        """The collector took them."""
        self.accepted += count
        self._outage.ends(self.signal, self.failed)

    def lost(self, count: int, cause: str) -> None:
        """The collector did not take them."""
        self.failed += count
        self._outage.begins(self.signal, cause)


class SpanOutlet:
    """
    Makes spans of what is queued and gives them to an exporter. Inert in a forked copy.

    Encoded here where the exporter takes that; else as spans of the SDK,
    without those that the encoder would choke on.
    """

    def __init__(self, exporter: SpanExporter, provider: TracerProvider, tally: Tally) -> None:
        self._exporter, self._tally, self._pid = exporter, tally, os.getpid()
        self._largest = setting(OTEL_BSP_MAX_EXPORT_BATCH_SIZE, 512)
        self._send = otlp.sender(exporter)
        self._encoder, self._replay = otlp.Encoder(provider), Replay(provider)

    def deliver(self, batch: Sequence[Decided], breathe: Callable[[], None]) -> None:
        """Never raises."""
        if os.getpid() == self._pid:
            with _QUIET:
                (self._as_spans if self._send is None else self._as_bytes)(batch, breathe)

    def _as_spans(self, batch: Sequence[Decided], breathe: Callable[[], None]) -> None:
        spans: list[ReadableSpan] = []
        for decided in breathing(batch, breathe):
            try:
                made = self._replay.spans(decided)
                good = [span for span in made if _sendable(span)]
            except Exception as error:
                self._undescribed(error)
            else:
                spans.extend(good)
                self._tally.rejected += len(made) - len(good)
        for start in range(0, len(spans), self._largest):
            part = spans[start : start + self._largest]
            self._out(len(part), partial(self._exporter.export, part))

    def _as_bytes(self, batch: Sequence[Decided], breathe: Callable[[], None]) -> None:
        assert self._send is not None
        by_scope: dict[str, list[bytes]] = {}
        for decided in breathing(batch, breathe):
            try:
                spans, odd = self._encoder.spans(decided, _sendable)
            except Exception as error:
                self._undescribed(error)
            else:
                by_scope.setdefault(decided.scope, []).extend(spans)
                self._tally.rejected += odd
        for scope, spans in by_scope.items():
            for start in range(0, len(spans), self._largest):
                part = spans[start : start + self._largest]
                self._out(len(part), partial(self._send, self._encoder.request(scope, part), len(part)))

    def _undescribed(self, error: Exception) -> None:
        self._tally.rejected += 1  # at least
        faults.swallow("pipeline.describe", error)

    def _out(self, count: int, send: Callable[[], SpanExportResult]) -> None:
        cause, result = "refused or unreachable", SpanExportResult.FAILURE
        try:
            result = send()
        except Exception as error:
            cause = type(error).__name__
        if result is SpanExportResult.SUCCESS:
            self._tally.delivered(count)
        else:
            self._tally.lost(count, cause)

    def shutdown(self) -> None:
        """Close the connection, if this is the process that opened it."""
        if os.getpid() == self._pid:
            self._exporter.shutdown()


class CountingMetricExporter(MetricExporter):
    """The same for metrics; counts data points."""

    def __init__(self, inner: MetricExporter, tally: Tally) -> None:
        # The reader asks the outer exporter, which must answer as the inner one
        # would; the SDK has no public reader for these two.
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)
        self._inner, self._tally, self._pid = inner, tally, os.getpid()
        self.complete: Callable[[MetricsData], MetricsData] | None = None
        """Adds what is kept outside the SDK."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> MetricExportResult:
        """Never raises."""
        if os.getpid() != self._pid:
            return MetricExportResult.SUCCESS
        if self.complete is not None:
            metrics_data = self.complete(metrics_data)
        points = sum(
            len(metric.data.data_points)
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        cause, result = "refused or unreachable", MetricExportResult.FAILURE
        try:
            with _QUIET:
                result = self._inner.export(metrics_data, timeout_millis, **kwargs)
        except Exception as error:
            cause = type(error).__name__
        if result is MetricExportResult.SUCCESS:
            self._tally.delivered(points)
        else:
            self._tally.lost(points, cause)
        return result

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        """Close the connection, if this is the process that opened it."""
        if os.getpid() == self._pid:
            self._inner.shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back here."""
        return self._inner.force_flush(timeout_millis)


class Loss:
    """What was exported and dropped, for the self-metrics and ``status()``."""

    def __init__(self) -> None:
        self.outage = Outage()
        self.spans, self.metrics = Tally("spans", self.outage), Tally("metrics", self.outage)
        self.queue: SpanQueue | None = None
        self.sampler: CappedSampler | None = None

    def exported(self) -> dict[str, int]:
        """Accepted by the collector, by kind."""
        return {tally.signal: tally.accepted for tally in (self.spans, self.metrics)}

    def dropped(self) -> dict[str, int]:
        """Lost, by kind; spans that still wait are not lost yet."""
        overflow = 0 if self.queue is None else self.queue.overflow
        return {"spans": self.spans.failed + self.spans.rejected + overflow, "metrics": self.metrics.failed}

    def capped(self) -> dict[str, int]:
        """Requests that have no spans because too many are sampled; nothing is lost of their metrics."""
        return {"spans": 0 if self.sampler is None else self.sampler.capped}

    def waiting(self) -> int:
        """Requests whose spans wait for their export."""
        return 0 if self.queue is None else self.queue.waiting


def _sendable(span: ReadableSpan) -> bool:
    """Whether the OTLP encoder can take it: one that it cannot loses the batch."""
    try:
        span.name.encode()
        (span.status.description or "").encode()
        start, end = span.start_time, span.end_time
        return isinstance(start, int) and isinstance(end, int) and 0 <= start <= end < 1 << 63
    except Exception:
        return False


class _Quiet(logging.Filter):
    """
    Silences the SDK's exporters while they run for us.

    They log per batch and per retry; the tallies say the same in one line. A
    pipeline of the application's own keeps its logs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def attach(self) -> None:
        """Watch the loggers that exporters have made so far."""
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk.")):
                logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what is not said on our behalf."""
        return not getattr(self._local, "active", False)

    def __enter__(self) -> None:
        self._local.active = True

    def __exit__(self, *_: object) -> None:
        self._local.active = False


_QUIET = _Quiet()
quiet_exporters = _QUIET.attach
