"""
``instrument()`` and what hangs on it: engines, emission, pipeline, status.

A finished timeline goes to the server edge that its request came through, if
that is still open; else to the telemetry and to every sink.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from otel_llm import engines, faults, outlet
from otel_llm.config import Settings
from otel_llm.engine_state import Emission
from otel_llm.health import EngineStatus, Status
from otel_llm.patching import Engine, Hook, Patcher, Probe
from otel_llm.pipeline import exit as process_exit
from otel_llm.pipeline.process import PerProcess
from otel_llm.recording import Draft
from otel_llm.timeline import Timeline

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from otel_llm.pipeline.providers import Pipeline, Signal
    from otel_llm.telemetry.recorder import Recorder

Sink = Callable[[Timeline], None]


@dataclass(slots=True)
class _Live:
    """The telemetry of one process."""

    recorder: Recorder
    take: Callable[[Emission], None]
    """Has it recorded, now or in a moment."""
    pipeline: Pipeline | None
    settled: bool
    """Whether the application's providers, or explicit ones, serve both signals."""
    outdated: bool = False
    """Whether the application has set a provider since."""


class _Active:
    """What ``instrument()`` set up in this process or in the parent that forked it."""

    def __init__(self, settings: Settings, tracer_provider: Any, meter_provider: Any) -> None:
        self.settings = settings
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.patchers: dict[str, Patcher] = {}
        from otel_llm.telemetry import context  # here: a request asks, and an import statement is dear

        self._applications = context.application_tracer_provider, context.application_meter_provider
        self.traced: Callable[[], bool] = context.traced_by_application if tracer_provider is None else bool
        """Whether the application has set a tracer provider that counts: soon asked, at every request."""
        self._metered: Callable[[], bool] = context.metered_by_application if meter_provider is None else bool

    def build(self) -> _Live:
        from otel_llm.pipeline.providers import Pipeline, sdk_disabled
        from otel_llm.telemetry.recorder import Recorder

        tracers, meters = self._applications
        traces, metrics = self.tracer_provider or tracers(), self.meter_provider or meters()
        served: dict[Signal, object] = {"traces": traces, "metrics": metrics}
        missing: frozenset[Signal] = frozenset(signal for signal, provider in served.items() if provider is None)
        pipeline = None
        if missing and not sdk_disabled():
            pipeline = Pipeline(self.settings.service_name, missing, self.settings.sampled_per_second)
        if pipeline is not None:
            traces, metrics = traces or pipeline.spans, metrics or pipeline.bulk or pipeline.meter_provider
            process_exit.arm_child()
        recorder = Recorder(
            traces,
            metrics,
            public_endpoint=self.settings.public_endpoint,
            targets=self.settings.targets,
            loss=None if pipeline is None else pipeline.loss,
        )
        take: Callable[[Emission], None] = partial(_record, recorder)
        if pipeline is not None and traces is pipeline.spans and metrics is pipeline.bulk:
            take = pipeline.deferring(take)
        return _Live(recorder, take, pipeline, settled=not missing)

    def follows(self) -> tuple[bool, bool]:
        """Whether spans, and whether metrics, go to a provider that the application has set; after ``build``."""
        return self.traced(), self._metered()


_STATUS_SECONDS: Final = 0.2
"""Longest that ``status()`` waits for a recording: a log handler may ask in the middle of one."""
_lock: Final = PerProcess(threading.Lock)
_sinks: Final[list[Sink]] = []
_active: _Active | None = None


def _build() -> _Live:
    if _active is None:
        raise RuntimeError("not instrumented")
    return _active.build()


_live: Final = PerProcess(_build)


def instrument(
    *,
    service_name: str | None = None,
    engines: Iterable[str] | None = None,
    slo: Mapping[str, float] | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """
    Account for every request of the LLM engines in this process, and export it.

    Imports no engine: hooks wait for the engine's own import. Without explicit
    providers the application's are used, and where it has set none, ours are
    built from the standard ``OTEL_*`` variables when an engine or a server starts,
    at the latest at the first request. Calling it again changes nothing.

    ``slo`` gives targets in seconds, ``{"ttft": 0.5, "tpot": 0.05}``: a request
    is good if it meets all of them. Raises ValueError for an engine or target
    that does not exist.
    """
    global _active
    from otel_llm import clients, servers
    from otel_llm.telemetry.context import capture

    with _lock.get():
        if _active is not None:
            faults.warn("instrument", "otel_llm: already instrumented, the second instrument() changes nothing")
            return
        settings = Settings.load(service_name=service_name, engines=engines, slo=slo)
        rows = [_engine(name) for name in (_engine_names() if settings.engines is None else settings.engines)]
        active = _Active(settings, tracer_provider, meter_provider)
        _active = active
        outlet.active = outlet.Outlet(emit, capture, begin_client, settings.timing)
        process_exit.arm(_shutdown)
        edges = [room.load(name) for room in (servers, clients) for name in room.names()]
        for row in (*rows, *edges, _UVICORN_EXIT):
            active.patchers[row.name] = patcher = Patcher(row, emit, capture, ready, *settings.details)
            patcher.arm()


def uninstrument() -> None:
    """Put back exactly what was there and close our pipeline, if there is one."""
    global _active
    with _lock.get():
        if _active is None:
            return
        for patcher in _active.patchers.values():
            patcher.undo()
        outlet.active = None
        _shutdown()
        _active = None


def status() -> Status:
    """Which engines, which hooks, what was lost: in this process, now."""
    patchers = {} if _active is None else _active.patchers
    live = _live.peek()
    pipeline = None if live is None else live.pipeline
    if pipeline is not None:
        pipeline.drain(_STATUS_SECONDS)
    hooked = {name: _hooks_of(patcher) for name, patcher in patchers.items() if patcher.engine is not _UVICORN_EXIT}
    return Status(
        instrumented=_active is not None,
        engines={name: state for name, state in hooked.items() if name in _engine_names()},
        edges={name: state for name, state in hooked.items() if name not in _engine_names()},
        exporters={} if pipeline is None else dict(pipeline.exporters),
        exported={} if pipeline is None else pipeline.loss.exported(),
        dropped={} if pipeline is None else pipeline.loss.dropped(),
        capped={} if pipeline is None else pipeline.loss.capped(),
        errors=dict(faults.errors),
    )


def _hooks_of(patcher: Patcher) -> EngineStatus:
    return EngineStatus(
        state=patcher.state if patcher.breaker.closed else "failed",
        version=getattr(sys.modules.get(patcher.engine.package), "__version__", None),
        hooks=patcher.wrapped,
        reason=patcher.reason or patcher.breaker.reason,
    )


def add_sink(sink: Sink) -> Callable[[], None]:
    """Give every finished timeline to ``sink``, as data; return a function that stops it."""
    _sinks.append(sink)

    def remove() -> None:
        if sink in _sinks:
            _sinks.remove(sink)

    return remove


def emit(said: Emission) -> None:
    """Take a finished request, or what an engine says of itself. Never raises."""
    try:
        if asks := isinstance(said, (Draft, Timeline)):  # not at every step
            edge = getattr(said.context, "edge", None)
            if edge is not None and edge.collect(said):
                return
            if _sinks and isinstance(said, Draft):
                if (request := said.timeline()) is None:
                    return
                said = request
        if (active := _active) is not None:
            live = _live.value or _live.get()
            if asks and (live.outdated or (not live.settled and active.traced())):
                live = _current_live() or live
            live.take(said)
    except Exception as error:
        faults.swallow("emit", error)
    if _sinks and isinstance(said, Timeline):
        for sink in tuple(_sinks):
            try:
                sink(said)
            except Exception as error:
                faults.swallow("sink", error)


def begin_client(operation: str, model: str | None, start: int) -> outlet.ClientSpan | None:
    """Begin the span of a client's attempt. Never raises."""
    try:
        live = _current_live()
        return None if live is None else live.recorder.clients.begin(operation, model, start)
    except Exception as error:
        faults.swallow("begin_client", error)
        return None


def ready() -> bool:
    """Build the pipeline before the first request needs it; whether spans go to the global provider. Never raises."""
    try:
        live, active = _current_live(), _active
        return live is not None and active is not None and active.follows()[0]
    except Exception as error:
        faults.swallow("ready", error)
        return False


def _current_live() -> _Live | None:
    active = _active
    if active is None:
        return None
    live = _live.get()
    if not live.settled and any(active.follows()):
        _retire(_live.discard(live))
        live = _live.get()
        live.settled = True
    return live


def _record(recorder: Recorder, said: Emission) -> None:
    """Record it, and note whether the next is the application's. Builds nothing: the process may be at its end."""
    recorder.record(said)
    active, live = _active, _live.peek()
    if active is not None and live is not None and live.recorder is recorder and isinstance(said, (Timeline, Draft)):
        live.outdated = not live.settled and any(active.follows())


def _retire(live: _Live | None) -> None:
    """Close a pipeline that the application's providers replace, beside the request. The interpreter waits for it."""
    if live is not None and live.pipeline is not None:
        threading.Thread(target=live.pipeline.shutdown, name="otel-llm-retire", daemon=False).start()


def _shutdown() -> None:
    if (live := _live.peek() or _live.discard()) is not None and live.pipeline is not None:
        live.pipeline.shutdown()
    _live.discard(live)  # only now: who tells while it closes would build another, which nobody closes


def _flush() -> None:
    live = _live.peek()
    if live is not None and live.pipeline is not None:
        live.pipeline.flush()


def _uvicorn_exit(_probe: Probe) -> tuple[Hook, ...]:
    return (Hook(("uvicorn.server:Server.shutdown",), replacement=process_exit.flush_after(_flush)),)


_UVICORN_EXIT: Final = Engine("uvicorn exit", "uvicorn", ("uvicorn.server",), _uvicorn_exit)
_engine: Final = engines.load
_engine_names: Final = engines.names
