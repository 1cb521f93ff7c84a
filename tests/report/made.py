"""Requests made by hand, to be told from."""

from __future__ import annotations

from collections.abc import Mapping

from otel_llm.report.requests import Part, Request

MS = 1_000_000


def request(
    trace_id: str, start: int, phases: Mapping[str, int], *, outcome: str = "ok", tokens: int | None = 11
) -> Request:
    """Start and durations of the phases in milliseconds."""
    parts = []
    moment = start * MS
    first = None
    for phase, duration in phases.items():
        if phase == "decode":
            first = moment - start * MS
        parts.append(Part(phase, moment, moment + duration * MS))
        moment += duration * MS
    return Request(
        trace_id=trace_id,
        start=start * MS,
        end=moment,
        parts=tuple(parts),
        outcome=outcome,
        time_to_first_token=first,
        prompt_tokens=7,
        cached_tokens=0,
        output_tokens=tokens,
        preemptions=0,
        model="m",
    )
