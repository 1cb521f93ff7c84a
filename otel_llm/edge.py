"""
Where a request enters a server process: the HTTP request around its engine requests.

The server writes its stamps here, the engines hand over their requests, and
when the last byte is sent both leave as the draft of ONE timeline: one HTTP
request is one request, whatever it asked of the engine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

from otel_llm import faults
from otel_llm.pairing import ServerTiming
from otel_llm.recording import Draft
from otel_llm.timeline import AttributeValue, Outcome, Timeline, merged, wall_offset

BLOCKED_KEPT: Final = 1024
"""Intervals of blocked sending that are remembered, the latest ones."""

CHILDREN_KEPT: Final = 128
"""Engine requests of one HTTP request that keep a timeline of their own; beam search makes one per beam and token."""


class Enclosing(Protocol):
    """A request that engine requests are part of: an HTTP request, or one that is marked by hand."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Trace headers that came with it."""
        ...

    def expect(self) -> None:
        """An engine request begins on its behalf."""

    def withdraw(self) -> None:
        """An engine request that was expected will not come. May be called from a finaliser: takes no lock for long."""

    def collect(self, request: Timeline | Draft) -> bool:
        """Take over a finished engine request; False when this one has been reported."""
        ...


class Delivery(NamedTuple):
    """What the kernel says about the way to the peer, at the end of the answer."""

    last_bytes: int
    """Nanoseconds from the last send to its acknowledgement, at least one round trip."""
    peer_limited: int
    """Nanoseconds in which the peer's full receive buffer held up sending."""


class ServerEdge(Draft):
    """
    One HTTP request in flight, then the draft of it. All stamps are monotonic nanoseconds.

    ``emit`` takes the draft of the joined timeline; ``capture`` is asked for a
    context when no engine was reached; ``headers`` are the trace headers of the
    request.
    """

    def __init__(
        self,
        emit: Callable[[Draft], None],
        capture: Callable[[Mapping[str, str] | None], object],
        headers: Mapping[str, str],
    ) -> None:
        self.headers, self.swallow = headers, faults.swallow
        self.arrived: int | None = None
        self.parsed: int | None = None
        self.received: int | None = None
        self.first_body: int | None = None
        """When the first piece of the body had been sent."""
        self.first_token: int | None = None
        """When the first token-bearing event had been sent."""
        self.ended: int | None = None
        self.settled = False
        """Whether the server has written all that it will know."""
        self.blocked: deque[tuple[int, int]] = deque(maxlen=BLOCKED_KEPT)
        """(start, end) of each send that had to wait for the peer."""
        self.delivery: Delivery | None = None
        self.outcome: Outcome = "ok"
        self.error_type: str | None = None
        self.refusal: tuple[str, str] | None = None
        """(engine, operation) to report when the request failed before it reached an engine."""
        self._emit = emit
        self._capture = capture
        self._wall_offset = wall_offset()
        self._expected = 0
        self._collected = 0
        self._engines: list[Timeline | Draft] = []
        self._open = True
        # An engine may run in a thread of its own, and a finaliser inside of anything.
        self._lock = threading.RLock()
        self.wake: Callable[[], object] | None = None
        """Brings about ``report`` soon, from any thread; set while this request waits for an engine's."""

    def expect(self) -> None:
        """An engine request begins on behalf of this HTTP request."""
        with self._lock:
            self._expected += 1

    def collect(self, request: Timeline | Draft) -> bool:
        """Take over a finished engine request; False when the HTTP request has been reported."""
        with self._lock:
            if not self._open:
                return False
            self._collected += 1
            keep(self._engines, request)
            complete = self.settled and self._collected >= self._expected
        if complete:
            self.report()
        return True

    def withdraw(self) -> None:
        """An engine request that was expected will not come."""
        with self._lock:
            self._expected -= 1
        if self.wake is not None and not self.waiting:
            self.wake()

    @property
    def reached(self) -> bool:
        """Whether an engine request has finished."""
        return bool(self._engines)

    @property
    def engines(self) -> list[Timeline]:
        """The engine requests that have finished so far; the first to ask has their timelines made."""
        with self._lock:
            return timelines(self._engines)

    @property
    def waiting(self) -> bool:
        """Whether an engine request has begun that has not been handed over."""
        return self._collected < self._expected

    def report(self) -> None:
        """Emit what they are together, once. Nothing to say about a request that asked nothing of an engine."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        if self.ended is None:
            self.ended = time.monotonic_ns()
        if self._engines:
            self.context = self._engines[0].context
        elif self.refusal is None or self.outcome == "ok":
            return
        else:
            self.context = self._capture(self.headers)
        self._emit(self)

    def timing(self, peer_limited: bool) -> ServerTiming | None:
        """Where the time went up to now, for the client; None while an engine is still at work."""
        if not self._engines or self.waiting:
            return None
        timeline = self.make()
        if timeline is None:
            return None
        phases: dict[str, int] = {}
        for phase in timeline.phases():
            phases[phase.name] = phases.get(phase.name, 0) + phase.duration
        body, token = (None if at is None else at - timeline.start for at in (self.first_body, self.first_token))
        return ServerTiming(phases, timeline.engine, body, token, timeline.stall if peer_limited else 0)

    def make(self) -> Timeline | None:
        """See ``Draft``."""
        engines = self.engines
        stamps: dict[str, Any] = {
            "arrived": self.arrived,
            "parsed": self.parsed,
            "received": self.received,
            "ended": time.monotonic_ns() if self.ended is None else self.ended,
        }
        if not engines:
            if self.refusal is None:
                return None  # its engine's could not be made
            engine, operation = self.refusal
            return Timeline(
                **stamps,
                engine=engine,
                operation=operation,
                outcome=self.outcome,
                error_type=self.error_type,
                wall_offset=self._wall_offset,
                context=self.context,
            )
        marks = several(engines) if len(engines) > 1 else {}
        outcome, error_type = self._ending(engines)
        joined = replace(engines[0], **{**marks, **stamps}, outcome=outcome, error_type=error_type)
        if joined.submitted is None and any(engine.start == joined.scheduled for engine in engines):
            joined = replace(joined, submitted=joined.scheduled)  # its work began as soon as it was handed over
        stall = self.stalled_since(joined.last_token)
        return replace(joined, stall=stall, attributes={**joined.attributes, **self._network(stall)})

    def _network(self, stall: int) -> dict[str, AttributeValue]:
        """Upload, stall and the way of the last bytes. A peer that does not read is not the network."""
        if self.delivery is None or self.parsed is None or self.received is None:
            return {}
        slow_reader = self.delivery.peer_limited > 0
        duration = self.received - self.parsed + self.delivery.last_bytes + (0 if slow_reader else stall)
        attributes: dict[str, AttributeValue] = {
            "otel_llm.network.duration": duration / 1e9,
            "otel_llm.network.method": "server_tcp",
        }
        if slow_reader:
            attributes["otel_llm.network.peer_limited"] = self.delivery.peer_limited / 1e9
        return attributes

    def _ending(self, engines: list[Timeline]) -> tuple[Outcome, str | None]:
        """What went wrong, if anything: the engine knows the cause better than the answer's status does."""
        failures = [engine for engine in engines if engine.outcome != "ok"]
        if self.outcome == "abort" or not failures:
            return self.outcome, self.error_type
        worst = min(failures, key=lambda engine: ("error", "reject", "abort").index(engine.outcome))
        return worst.outcome, worst.error_type

    def stalled_since(self, last_token: int | None) -> int:
        """Nanoseconds after the last token in which sending had to wait for the peer."""
        if last_token is None:
            return 0
        return sum(max(end - max(start, last_token), 0) for start, end in self.blocked)


def keep(engines: list[Timeline | Draft], request: Timeline | Draft) -> None:
    """Add one to the engine requests of a request; those that are too many become one."""
    context: Any = request.context
    if getattr(context, "handed_over", None) is False:
        context.handed_over = True
    engines.append(request)
    if len(engines) > 2 * CHILDREN_KEPT and (rest := timelines(engines)[CHILDREN_KEPT:]):
        engines[CHILDREN_KEPT:] = [replace(rest[0], **several(rest), ended=rest[-1].ended)]


def timelines(engines: list[Timeline | Draft]) -> list[Timeline]:
    """Make timelines of the drafts among them, in their place; one that cannot be made is left out, and counted."""
    made = [engine.timeline() if isinstance(engine, Draft) else engine for engine in engines]
    found = [timeline for timeline in made if timeline is not None]
    engines[:] = found
    return found


def several(engines: list[Timeline]) -> dict[str, Any]:
    """What the engine requests of one HTTP request are together: fields for Timeline."""
    fields = merged(engines)
    # Prompts of different engine requests are different prompts: each counts.
    for name in ("prompt_tokens", "cached_tokens"):
        known = [count for count in (getattr(engine, name) for engine in engines) if count is not None]
        fields[name] = sum(known) if known else None
    fields["children"] = fields["children"][:CHILDREN_KEPT]
    fields["finish_reasons"] = fields["finish_reasons"][:CHILDREN_KEPT]
    return fields


current: Final[ContextVar[Enclosing | None]] = ContextVar("otel_llm_edge", default=None)
"""The request that the running task serves."""
