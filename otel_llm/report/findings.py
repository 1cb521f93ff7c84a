"""What load levels say in sentences, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from otel_llm.report.levels import Summary, growth
from otel_llm.report.palette import milliseconds
from otel_llm.report.receiver import Receiver
from otel_llm.report.requests import Request

TOLERANCE: Final = 1000
"""Nanoseconds that the phases of a request may miss its duration by."""


def sentences(summaries: Sequence[Summary], requests: Sequence[Request], receiver: Receiver) -> list[str]:
    """Findings in the order of their weight; each rests on figures of this run alone."""
    return [
        _identity(summaries),
        *(text for low, high in pairwise(summaries) if (text := _growth(low, high))),
        *_client(summaries),
        _metrics(requests, receiver),
    ]


def faults(summaries: Sequence[Summary]) -> list[str]:
    """Everything that must not be in a sound run, one sentence each."""
    found = []
    for summary in summaries:
        where = f"with {summary.concurrency} in flight"
        if not summary.requests:
            found.append(f"no request was measured {where}")
        if summary.failed:
            found.append(f"{summary.failed} requests failed {where}")
        if summary.missing:
            found.append(f"the spans of {summary.missing} requests did not arrive {where}")
        if abs(summary.residual) > TOLERANCE:
            found.append(f"phases and duration of a request differ by {summary.residual:,} ns {where}")
    return found


def _identity(summaries: Sequence[Summary]) -> str:
    count = sum(summary.requests for summary in summaries)
    residual = max((abs(summary.residual) for summary in summaries), default=0)
    return (
        f"Of {count:,} requests, the phases of each add up to its duration; the largest difference is {residual:,} ns."
    )


def _growth(low: Summary, high: Summary) -> str | None:
    parts = growth(low, high)
    if parts is None or low.duration is None or high.duration is None or not low.token_rate:
        return None
    causes = sorted(((part, name) for name, part in parts.items() if part >= 0.1), reverse=True)
    named = ", ".join(f"{part:.0%} of the growth is {name}" for part, name in causes)
    change = high.token_rate / low.token_rate - 1
    return (
        f"From {low.concurrency} to {high.concurrency} in flight, output goes from {low.token_rate:,.0f} to "
        f"{high.token_rate:,.0f} tokens/s ({change:+.0%}) and the mean request from "
        f"{milliseconds(low.duration.mean)} to {milliseconds(high.duration.mean)} ms: {named}."
    )


def _client(summaries: Sequence[Summary]) -> list[str]:
    """How far the two clocks are apart, which needs both of them."""
    gaps = [
        summary.client_duration.mean - summary.duration.mean
        for summary in summaries
        if summary.client_duration and summary.duration
    ]
    if not gaps:
        return []
    low, high = milliseconds(min(gaps)), milliseconds(max(gaps))
    return [
        f"The client's own clock says {low} to {high} ms more per request, depending on the load: "
        "what lies outside the server's first and last moment with a request."
    ]


def _metrics(requests: Sequence[Request], receiver: Receiver) -> str:
    """The same requests, counted and summed once by spans and once by histograms."""
    name = "gen_ai.server.request.duration"
    points = receiver.points(name)
    count = sum(point.count or 0 for point in points)
    total = sum(point.total for point in points)
    spent = sum(request.duration for request in requests) / 1e9
    phases = sum(point.total for point in receiver.points("otel_llm.request.phase.duration"))
    return (
        f"Metrics and spans, warm-up included: {name} holds {count:,} requests and {total:,.3f} s, its phases "
        f"{phases:,.3f} s, the spans {len(requests):,} requests and {spent:,.3f} s."
    )
