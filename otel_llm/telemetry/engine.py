"""
What engines say of themselves, as metrics.

Between two collections there is only arithmetic and one append per step: the
instruments are read, and the steps recorded, by whoever collects. So it costs
the engine's loop the same with a foreign meter provider.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.util.types import AttributeValue

from otel_llm import conventions, faults, sanitize
from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.telemetry.instruments import histogram

ENGINE_LIMIT: Final = 1000
"""Engines in one process; what later ones say is left out."""

STEP_LIMIT: Final = 100_000
"""Steps kept between two collections: a minute of 1,600 per second."""

_GAUGES: Final = {
    "otel_llm.engine.kv_cache.usage": "kv_cache_usage",
    "otel_llm.engine.sleep_level": "sleep_level",
}
_COUNTERS: Final = {
    "otel_llm.engine.prefix_cache.queries": "prefix_cache_queries",
    "otel_llm.engine.prefix_cache.hits": "prefix_cache_hits",
    "otel_llm.engine.preemptions": "preemptions",
    "otel_llm.engine.speculation.drafted": "drafted",
    "otel_llm.engine.speculation.accepted": "accepted",
}
_STATES: Final = ("waiting", "running")
_LAST: Final = (*_STATES, *_GAUGES.values())
_TOTALS: Final = tuple(_COUNTERS.values())
_PHASES: Final = ("prefill", "decode")
_last_of, _totals_of = attrgetter(*_LAST), attrgetter(*_TOTALS)

Labels = dict[str, AttributeValue]


SHARED_SECONDS: Final = 10.0
"""For so long a state holds of which other processes may have been told later."""


class _Engine:
    """One engine as this process was told of it."""

    def __init__(self, engine: str, model: str | None, index: int, key: str) -> None:
        self.key = key
        self.labels: Labels = {
            "gen_ai.provider.name": sanitize.text(engine),
            "gen_ai.request.model": sanitize.OTHER if model is None else sanitize.text(model),
            "otel_llm.engine.index": index,
        }
        self.last: dict[str, object] = {}
        self.stale_at = math.inf
        self.totals: Counter[str] = Counter()
        self.steps: deque[tuple[object, ...]] = deque()

    def gauge_labels(self) -> Labels:
        """Where several processes tell of one engine, one of them is to be taken."""
        return {**self.labels, "otel_llm.engine.id": self.key}

    def known(self, field: str) -> float | None:
        """What was told last, if it still holds and is a number."""
        return sanitize.number(self.last.get(field)) if time.monotonic() < self.stale_at else None


class EngineWriter:
    """Keeps the state of every engine and gives it to the instruments of a meter."""

    def __init__(self, meter: Meter) -> None:
        self._engines: dict[tuple[str, str | None, int], _Engine] = {}
        self._lock = threading.Lock()
        self._key = uuid.uuid4().hex[:12]  # made anew in a forked child, as all of this
        self._batch = histogram(meter, "otel_llm.engine.batch.size")
        self._tokens = histogram(meter, "otel_llm.engine.step.tokens")
        self._duration = histogram(meter, "otel_llm.engine.step.duration")
        self._observe(meter.create_observable_gauge, "otel_llm.engine.requests", self._requests)
        self._observe(meter.create_observable_counter, "otel_llm.engine.computed_tokens", self._steps)
        for name, field in _GAUGES.items():
            self._observe(meter.create_observable_gauge, name, partial(self._told, field))
        for name, field in _COUNTERS.items():
            self._observe(meter.create_observable_counter, name, partial(self._counted, field))

    def write(self, said: EngineState | EngineStep) -> None:
        """Take it in; a field that is None changes nothing."""
        engine = self._engines.get((said.engine, said.model, said.rank)) or self._new(said)
        if engine is None:
            return
        if isinstance(said, EngineStep):
            if len(engine.steps) < STEP_LIMIT:
                engine.steps.append(said[3:])  # numbers alone: nothing for the garbage collector to look through
            else:
                faults.warn("engine.steps", "otel_llm: nobody collects metrics, steps of %s are left out", said.engine)
            return
        with self._lock:  # two engines of one name may tell at once
            if said.shared is not None:
                engine.key, engine.stale_at = sanitize.text(said.shared), time.monotonic() + SHARED_SECONDS
            for field, value in zip(_LAST, _last_of(said), strict=True):
                if value is not None:
                    engine.last[field] = value
            for field, count in zip(_TOTALS, _totals_of(said), strict=True):
                if (counted := sanitize.count(count)) is not None:
                    engine.totals[field] += counted

    def _new(self, said: EngineState | EngineStep) -> _Engine | None:
        if not -(1 << 63) <= said.rank < 1 << 63:  # an exporter leaves such a label out: engines would be mixed up
            faults.warn("engine.rank", "otel_llm: an engine of %s has no such number, it is left out", said.engine)
            return None
        with self._lock:
            if len(self._engines) >= ENGINE_LIMIT:
                faults.warn("engine.limit", "otel_llm: more than %d engines, later ones are left out", ENGINE_LIMIT)
                return None
            made = _Engine(said.engine, said.model, said.rank, self._key)
            return self._engines.setdefault((said.engine, said.model, said.rank), made)

    def _known(self) -> tuple[_Engine, ...]:
        return tuple(self._engines.values())

    def _requests(self) -> Iterator[Observation]:
        for engine in self._known():
            for state in _STATES:
                if (number := engine.known(state)) is not None:
                    yield Observation(number, {**engine.gauge_labels(), "otel_llm.state": state})

    def _told(self, field: str) -> Iterator[Observation]:
        for engine in self._known():
            if (value := engine.known(field)) is not None:
                yield Observation(value, engine.gauge_labels())

    def _counted(self, field: str) -> Iterator[Observation]:
        for engine in self._known():
            if field in engine.totals:
                yield Observation(engine.totals[field], engine.labels)

    def _steps(self) -> Iterator[Observation]:
        """Record the steps since the last collection: they are part of this one."""
        for engine in self._known():
            while engine.steps:
                self._record(engine, *engine.steps.popleft())
            for phase in _PHASES:
                if phase in engine.totals:
                    yield Observation(engine.totals[phase], {**engine.labels, "otel_llm.phase": phase})

    def _record(self, engine: _Engine, requests: object, tokens: object, prefill: object, duration: object) -> None:
        batch, counted, prompts = map(sanitize.count, (requests, tokens, prefill))
        for instrument, value in (
            (self._batch, batch),
            (self._tokens, counted),
            (self._duration, sanitize.number(duration)),
        ):
            if value is not None:
                instrument.record(value, engine.labels)
        if counted is not None and prompts is not None and prompts <= counted:
            engine.totals["prefill"] += prompts
            engine.totals["decode"] += counted - prompts

    @staticmethod
    def _observe(create: Callable[..., object], name: str, read: Callable[[], Iterable[Observation]]) -> None:
        row = conventions.INSTRUMENTS[name]

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            try:
                return list(read())
            except Exception as error:
                faults.swallow("engine.collect", error)
                return ()

        create(name, [callback], row.unit, row.description)
