"""
Providers from the standard ``OTEL_*`` variables.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
The exporters are found by the entry-point groups of the OpenTelemetry SDK, so
that any installed one can be named.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_METRICS_PROTOCOL,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    OTEL_SDK_DISABLED,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from otel_llm import faults
from otel_llm.pipeline.backlog import FOREVER, Backlog
from otel_llm.pipeline.bulk import BulkMeterProvider, takes_bulk
from otel_llm.pipeline.exporters import CountingMetricExporter, Loss, SpanOutlet, quiet_exporters
from otel_llm.pipeline.sampling import CappedSampler
from otel_llm.pipeline.spans import DeferredSpanMakers

Signal = Literal["traces", "metrics"]
T = TypeVar("T")

EXIT_SECONDS = 3.0
"""Longest time that telemetry may delay the exit of the service."""

_EXPORTER = {"traces": "OTEL_TRACES_EXPORTER", "metrics": "OTEL_METRICS_EXPORTER"}
_PROTOCOL = {"traces": OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, "metrics": OTEL_EXPORTER_OTLP_METRICS_PROTOCOL}
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says so."""
    return os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"


class OwnIds(IdGenerator):
    """
    Ids of a generator that the system's entropy has seeded, once for each pipeline and so for each process.

    vLLM and transformers seed the ``random`` module, which the SDK's generator
    uses: its ids would repeat between processes. Entropy for each id would be a
    system call, which gives the interpreter away.
    """

    def __init__(self) -> None:
        self._bits = random.Random().getrandbits

    def generate_span_id(self) -> int:
        """64 random bits, not zero."""
        return self._bits(64) or 1

    def generate_trace_id(self) -> int:
        """128 random bits, not zero."""
        return self._bits(128) or 1


class _Reader(PeriodicExportingMetricReader):
    """The SDK's own, whose last collection has as much time as every other one, and which is idle in a forked copy."""

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Collect and export for the last time."""
        # The SDK gives that one interval: a short one is soon over on a busy machine, and the metrics are lost.
        self._export_interval_millis = max(self._export_interval_millis, self._export_timeout_millis)
        super().shutdown(timeout_millis, **kwargs)

    def _at_fork_reinit(self) -> None:
        """The SDK starts its thread anew in a forked child, where it would record what its parent was told."""


class Pipeline:
    """Providers of our own for one process, closed in bounded time."""

    def __init__(
        self, service_name: str | None, signals: frozenset[Signal], sampled_per_second: float = math.inf
    ) -> None:
        resource = Resource.create({SERVICE_NAME: service_name} if service_name else {})
        # Every process is an instance of its own: their counters must not be mixed.
        instance = resource.attributes.get(SERVICE_INSTANCE_ID) or os.urandom(16).hex()
        resource = resource.merge(Resource({SERVICE_INSTANCE_ID: instance}))
        self.loss = Loss()
        self._sampled_per_second = sampled_per_second
        self._waited, self._waited_until = 0.0, -math.inf
        self._backlog: Backlog[Any] | None = None
        self.exporters: dict[str, tuple[str, ...]] = {}
        self.bulk: BulkMeterProvider | None = None
        """The meter provider to record with, where the exporters take what it makes."""
        self.spans = self._traces(resource) if "traces" in signals else None
        self.meter_provider = self._metrics(resource) if "metrics" in signals else None
        quiet_exporters()
        self._ending = threading.Event()
        # They wait from the start: an interpreter of Python 3.12 that is about to end starts no thread.
        self._closers = self._each(self._close, "shutdown")

    def _traces(self, resource: Resource) -> DeferredSpanMakers | None:
        found = self._load("traces")
        if not found:
            return None
        provider = TracerProvider(resource=resource, id_generator=OwnIds(), shutdown_on_exit=False)
        # Around the one of OTEL_TRACES_SAMPLER, which only the provider knows how to make.
        provider.sampler = self.loss.sampler = CappedSampler(provider.sampler, self._sampled_per_second)
        spans = DeferredSpanMakers(provider, [SpanOutlet(exporter, provider, self.loss.spans) for exporter in found])
        self.loss.queue = spans.queue
        return spans

    def _metrics(self, resource: Resource) -> MeterProvider | None:
        found = self._load("metrics")
        if not found:
            return None
        pulled = [reader for reader in found if isinstance(reader, MetricReader)]  # Prometheus comes for them
        exporters = [CountingMetricExporter(e, self.loss.metrics) for e in found if e not in pulled]
        readers = [*pulled, *(_Reader(exporter) for exporter in exporters)]
        provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        if not pulled and all(takes_bulk(exporter) for exporter in exporters):
            self.bulk = BulkMeterProvider(provider, self.drain)
            for exporter in exporters:
                exporter.complete = self.bulk.complete
        return provider

    def _load(self, signal: Signal) -> list[Any]:
        names = [name.strip() for name in os.environ.get(_EXPORTER[signal], "otlp").split(",")]
        names = [name for name in names if name and name != "none"]
        found = []
        for name in names:
            try:
                found.append(_exporter(signal, name))
            except Exception as error:
                faults.logger.warning("otel_llm: no %s are sent by %r (%s)", signal, name, type(error).__name__)
                faults.swallow(f"pipeline.{signal}", error)
        self.exporters[signal] = tuple(names)
        return found

    def deferring(self, record: Callable[[T], None]) -> Callable[[T], None]:
        """Return what takes the place of ``record``; not for a pipeline whose metrics the SDK alone collects."""
        if self.spans is None and self.bulk is None:
            return record
        self._backlog = backlog = Backlog(record)
        return backlog.put

    def drain(self, seconds: float = FOREVER) -> None:
        """Record what was told by now; a thread of the host's says how long it waits for another that records."""
        if self._backlog is not None:
            self._backlog.drain(seconds)

    def _close(self) -> None:
        self._ending.wait()
        if self._backlog is not None:
            self._backlog.close()

    def flush(self) -> None:
        """Send what is queued; gives up after ``EXIT_SECONDS``."""
        self._wait_for(self._each(self.drain, "force_flush"))

    def shutdown(self) -> None:
        """Send what is queued and close; gives up after ``EXIT_SECONDS``, and says so."""
        self._ending.set()
        self._wait_for(self._closers)
        late = {kind: kind for kind, closer in self._closers.items() if closer.is_alive()}
        if left := self.loss.waiting():
            late["spans"] = f"the spans of {left} requests"
        if late and not self.loss.outage.lasts:
            said = " and ".join(late.values())
            faults.logger.warning("otel_llm: %s were not delivered in time before the exit", said)

    def _each(self, record: Callable[[], None], method: str) -> dict[str, threading.Thread]:
        # The SDK's own time-outs reach 30 s each, so they run in threads that
        # the interpreter does not wait for.
        providers = {"spans": self.spans, "metrics": self.meter_provider}
        threads = {
            kind: threading.Thread(
                target=_guarded, args=(record, provider, method), name=f"otel-llm-{method}", daemon=True
            )
            for kind, provider in providers.items()
            if provider is not None
        }
        for thread in threads.values():
            thread.start()
        return threads

    def _wait_for(self, threads: dict[str, threading.Thread]) -> None:
        began = time.monotonic()
        # A server that shuts down flushes, and closes at once after that: both together have the time.
        used = self._waited if began - self._waited_until < EXIT_SECONDS else 0.0
        deadline = began + EXIT_SECONDS - used
        for thread in threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._waited_until = time.monotonic()
        self._waited = used + self._waited_until - began


def _guarded(record: Callable[[], None], provider: Any, method: str) -> None:
    try:
        record()
        getattr(provider, method)()
    except Exception as error:
        faults.swallow(f"pipeline.{method}", error)


def _options(exporter: str) -> dict[str, Any]:
    if exporter != _OTLP["http/protobuf"]:
        return {}
    try:
        from otel_llm.pipeline import answers
    except ImportError:  # an exporter that does without requests
        return {}
    # A session with credentials that the service has configured stays in place.
    chosen = any(value for name, value in os.environ.items() if name.endswith("_CREDENTIAL_PROVIDER"))
    return {} if chosen else {"session": answers.session()}


def _exporter(signal: Signal, name: str) -> Any:
    if name == "otlp":
        protocol = os.environ.get(_PROTOCOL[signal]) or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL) or "grpc"
        name = _OTLP.get(protocol.strip(), protocol)
    for entry in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        return entry.load()(**_options(name))
    raise LookupError(f"no {signal} exporter named {name}")
