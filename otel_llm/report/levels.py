"""Load levels: what a number of concurrent requests did to latency and throughput."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from otel_llm.report.requests import PHASE_ORDER, Request


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as its client saw it; all times in nanoseconds."""

    trace_id: str
    duration: int
    time_to_first_token: int | None
    """From sending the request to receiving its first token; None if none came."""
    output_tokens: int | None
    """By the server's own account in its answer."""
    error: str | None = None


@dataclass(slots=True)
class Level:
    """A stretch of time in which a fixed number of requests was always in flight."""

    concurrency: int
    start: int = 0
    """Nanoseconds since the Unix epoch; 0 before it has begun."""
    end: int | None = None
    """When the clients stopped sending; None while they still do. Requests in flight then end later."""
    exchanges: list[Exchange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Spread:
    """A set of times, nanoseconds."""

    mean: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Over all values that are known; None if there is none."""
        known = sorted(value for value in values if value is not None)
        if not known:
            return None
        position = 0.95 * (len(known) - 1)
        below = int(position)
        above = min(below + 1, len(known) - 1)
        return cls(sum(known) / len(known), known[below] + (known[above] - known[below]) * (position - below))


@dataclass(frozen=True, slots=True)
class Summary:
    """A level in figures; server figures from spans, client figures from the load generator."""

    concurrency: int
    requests: int
    """Requests that ended in full and whose spans arrived."""
    failed: int
    """Requests that failed for the client."""
    missing: int
    """Requests that succeeded for the client, of which no span arrived."""
    request_rate: float
    """Per second."""
    token_rate: float
    """Output tokens per second."""
    duration: Spread | None
    time_to_first_token: Spread | None
    time_per_output_token: Spread | None
    phases: dict[str, Spread]
    """In order; over all requests, with 0 for a request that was never in the phase, so the means add up."""
    residual: int
    """Largest difference between the phases of a request and its duration, nanoseconds."""
    preemptions: int
    client_duration: Spread | None
    client_time_to_first_token: Spread | None

    @property
    def shares(self) -> dict[str, float]:
        """Part of all time spent in each phase, 0 to 1."""
        total = sum(spread.mean for spread in self.phases.values())
        return {name: spread.mean / total if total else 0.0 for name, spread in self.phases.items()}


def summarise(level: Level, requests: Sequence[Request], now: int) -> Summary:
    """
    Join what the clients of a level saw with the spans of the same traces.

    Rates hold for the time in which all clients were busy. A request that lies
    only partly in it counts in part, and its tokens as if spread evenly over
    its decode. ``now``, nanoseconds since the Unix epoch, is the end of a
    level that is still running.
    """
    succeeded = {exchange.trace_id for exchange in level.exchanges if exchange.error is None}
    ours = [request for request in requests if request.trace_id in succeeded and request.outcome == "ok"]
    begin, end = level.start, level.end or now
    seconds = max(end - begin, 1) / 1e9
    served = sum(_overlap((request.start, request.end), begin, end) for request in ours)
    tokens = sum(
        _overlap(request.decoding or (request.end, request.end), begin, end) * (request.output_tokens or 0)
        for request in ours
    )
    present = {part.phase for request in ours for part in request.parts}
    phases = {
        name: spread
        for name in PHASE_ORDER
        if name in present and (spread := Spread.of(request.phase(name) for request in ours))
    }
    exchanges = [exchange for exchange in level.exchanges if exchange.error is None]
    return Summary(
        concurrency=level.concurrency,
        requests=len(ours),
        failed=len(level.exchanges) - len(exchanges),
        missing=len(succeeded - {request.trace_id for request in ours}),
        request_rate=served / seconds,
        token_rate=tokens / seconds,
        duration=Spread.of(request.duration for request in ours),
        time_to_first_token=Spread.of(request.time_to_first_token for request in ours),
        time_per_output_token=Spread.of(request.time_per_output_token for request in ours),
        phases=phases,
        residual=max((request.residual for request in ours), key=abs, default=0),
        preemptions=sum(request.preemptions for request in ours),
        client_duration=Spread.of(exchange.duration for exchange in exchanges),
        client_time_to_first_token=Spread.of(exchange.time_to_first_token for exchange in exchanges),
    )


def _overlap(interval: tuple[int, int], begin: int, end: int) -> float:
    """Part of an interval that lies between begin and end, 0 to 1."""
    first, last = interval
    if last <= first:
        return 1.0 if begin <= last <= end else 0.0
    return max(0, min(last, end) - max(first, begin)) / (last - first)


def growth(before: Summary, after: Summary) -> dict[str, float] | None:
    """
    Part that each phase has in the growth of the mean duration between two levels.

    None if it grew by less than a fifth: shares of a small difference say nothing.
    """
    if before.duration is None or after.duration is None:
        return None
    grown = after.duration.mean - before.duration.mean
    if grown <= 0 or grown < before.duration.mean / 5:
        return None
    names = [name for name in PHASE_ORDER if name in before.phases or name in after.phases]
    return {name: (_mean(after, name) - _mean(before, name)) / grown for name in names}


def _mean(summary: Summary, phase: str) -> float:
    spread = summary.phases.get(phase)
    return spread.mean if spread else 0.0
