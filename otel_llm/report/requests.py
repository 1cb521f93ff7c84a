"""Requests as they were on the wire: every request span with its phases and stamps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from otel_llm.report.otlp import Span, Value
from otel_llm.timeline import PHASES, UNSPLIT

PHASE_ORDER = (*PHASES, UNSPLIT)
"""Phases in the order in which tables and charts show them."""


@dataclass(frozen=True, slots=True)
class Part:
    """One phase span; times in nanoseconds since the Unix epoch."""

    phase: str
    start: int
    end: int

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Request:
    """One request span and the phase spans below it; times in nanoseconds since the Unix epoch."""

    trace_id: str
    start: int
    end: int
    parts: tuple[Part, ...]
    outcome: str
    time_to_first_token: float | None
    """Nanoseconds."""
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    preemptions: int
    model: str | None

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.start

    @property
    def residual(self) -> int:
        """Nanoseconds by which the sum of the phases misses the duration; 0 if every moment is accounted for."""
        return sum(part.duration for part in self.parts) - self.duration

    def phase(self, name: str) -> int:
        """Nanoseconds in a phase; 0 if the request was never in it."""
        return sum(part.duration for part in self.parts if part.phase == name)

    @property
    def decoding(self) -> tuple[int, int] | None:
        """First and last token, None without a decode phase."""
        spans = [(part.start, part.end) for part in self.parts if part.phase == "decode"]
        return spans[0] if spans else None

    @property
    def time_per_output_token(self) -> float | None:
        """Nanoseconds, (last - first token) / (output tokens - 1); None below two tokens."""
        decoding, tokens = self.decoding, self.output_tokens or 0
        if self.outcome != "ok" or decoding is None or tokens < 2:
            return None
        return (decoding[1] - decoding[0]) / (tokens - 1)


def requests(spans: Sequence[Span]) -> list[Request]:
    """
    Put spans back together, oldest request first.

    A request with several samples is one request: spans of its samples lie
    below it and are left out. Phases that have not arrived (yet) are missing
    here as well, which ``Request.residual`` shows.
    """
    known = {(span.trace_id, span.span_id): span for span in spans if "otel_llm.outcome" in span.attributes}
    phases: defaultdict[tuple[str, str | None], list[Span]] = defaultdict(list)
    for span in spans:
        if "otel_llm.phase" in span.attributes:
            phases[span.trace_id, span.parent_id].append(span)
    found = [_request(span, phases[key]) for key, span in known.items() if (span.trace_id, span.parent_id) not in known]
    return sorted(found, key=lambda request: request.start)


def _request(span: Span, phases: list[Span]) -> Request:
    parts = [Part(str(phase.attributes["otel_llm.phase"]), phase.start, phase.end) for phase in phases]
    attributes = span.attributes
    first = _number(attributes, "gen_ai.latency.time_to_first_token")
    model = attributes.get("gen_ai.request.model")
    return Request(
        trace_id=span.trace_id,
        start=span.start,
        end=span.end,
        parts=tuple(sorted(parts, key=lambda part: part.start)),
        outcome=str(attributes["otel_llm.outcome"]),
        time_to_first_token=None if first is None else first * 1e9,
        prompt_tokens=_count(attributes, "gen_ai.usage.input_tokens"),
        cached_tokens=_count(attributes, "gen_ai.usage.cache_read.input_tokens"),
        output_tokens=_count(attributes, "gen_ai.usage.output_tokens"),
        preemptions=_count(attributes, "otel_llm.preemptions") or 0,
        model=None if model is None else str(model),
    )


def _number(attributes: Mapping[str, Value], key: str) -> float | None:
    value = attributes.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _count(attributes: Mapping[str, Value], key: str) -> int | None:
    value = attributes.get(key)
    return value if isinstance(value, int) else None
