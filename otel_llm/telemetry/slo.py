"""
Goodput, counted per request: a joint condition cannot be had from histograms.

A request is good if it ended in full and met every target. A failed one is not
good. One that its caller gave up counts only if it had missed the first-token
target by then: until that moment nothing is known about it.
"""

from __future__ import annotations

from typing import NamedTuple

from otel_llm.config import Targets
from otel_llm.timeline import UNSPLIT, Phase, Timeline


class Verdict(NamedTuple):
    """Whether the targets were met and, if not, the phase that took most of the time in question."""

    met: bool
    cause: str


def judge(timeline: Timeline, phases: tuple[Phase, ...], targets: Targets) -> Verdict | None:
    """Return None for a request that counts neither way."""
    first, each = timeline.time_to_first_token(), timeline.time_per_output_token()
    waited = timeline.duration if first is None else first
    late = _excess(waited, targets.ttft)
    slow = _excess(each, targets.tpot)
    if timeline.outcome == "abort" and late <= 1:
        return None
    if timeline.outcome == "ok" and late <= 1 and slow <= 1:
        return Verdict(met=True, cause="")
    if slow > max(late, 1):
        return Verdict(met=False, cause="decode")
    before = [part for part in phases if part.start < timeline.start + waited]
    longest = max(before, key=lambda part: part.duration, default=None)
    return Verdict(met=False, cause=UNSPLIT if longest is None else longest.name)


def _excess(nanoseconds: float | None, target: float | None) -> float:
    """How many times the target, 0.0 where there is none or nothing was measured."""
    return 0.0 if nanoseconds is None or target is None else nanoseconds / 1e9 / target
