"""
The one thing an engine hook produces: the stamps of a request, as frozen data.

All stamps are nanoseconds of one monotonic clock (``time.monotonic_ns``; on
Linux it is shared by all processes of a host). A stamp that is not known is
``None``. ``phases()`` cuts the request at its stamps into parts that never
overlap, never leave a gap and add up to the total exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Outcome = Literal["ok", "abort", "error", "reject"]
"""
How a request ended: in full, given up by its caller, failed in the engine, or
refused before the engine accepted it.
"""

AttributeValue = str | bool | int | float

ENGINE_PHASES: Final = ("queue", "prefill", "decode")
"""The phases that only the engine can tell apart."""

PHASES: Final = ("accept", "network", "preprocess", *ENGINE_PHASES, "postprocess")
"""The phases of a request in a server, in the order in which they happen."""

UNSPLIT: Final = "unsplit"
"""
Time that is known to belong to two or more neighbouring phases, when the stamp
between them is missing or contradicts the others. See docs/adr/0006.
"""

_POSTPROCESS = len(PHASES) - 1
_FIRST_TOKEN = PHASES.index("decode")


class Phase(NamedTuple):
    """A part of a request: ``start`` and ``end`` in monotonic nanoseconds."""

    name: str
    start: int
    end: int
    between: tuple[str, ...] = ()
    """For ``unsplit``: the phases that share this time."""

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """
    One finished request.

    The request starts at the first stamp that is not ``None``: with a server
    edge that is ``arrived``, without one the request is first seen in the
    process (``received``), at its submission, or (where there is nothing to
    wait for) at its scheduling. The phases before the first stamp are absent.
    """

    engine: str
    """``gen_ai.provider.name``: vllm, transformers, ..."""
    operation: str
    """``gen_ai.operation.name``: chat, text_completion, embeddings, ..."""
    ended: int
    """The moment of the last act for this request, whatever its outcome."""
    wall_offset: int
    """Wall clock minus monotonic clock, nanoseconds, read once per request."""

    arrived: int | None = None
    """First byte of the request at the server's socket."""
    parsed: int | None = None
    """Request head seen by the server's event loop."""
    received: int | None = None
    """Request complete in this process: the body read, or the call made."""
    submitted: int | None = None
    """Handed to the engine."""
    scheduled: int | None = None
    """First admitted to a batch."""
    first_token: int | None = None
    last_token: int | None = None
    stall: int = 0
    """Nanoseconds after ``last_token`` in which sending to the peer was blocked."""

    outcome: Outcome = "ok"
    error_type: str | None = None
    """Class name of the error, or the reason of the abort; None when ok."""
    cut_known: bool = True
    """False when the engine never told in which phase the request was cut."""
    model: str | None = None
    request_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    preemptions: int | None = None
    preemption_stall: int = 0
    """Nanoseconds between preemption and re-admission; inside prefill or decode."""
    children: tuple[Timeline, ...] = ()
    """One per sample of a request with several (``n``, prompt lists, beams)."""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Further span attributes, all declared in ``conventions``."""
    context: object = None
    """What ``capture()`` returned in the caller's task: opaque to engines."""
    _believed: tuple[dict[int, int], bool] = field(init=False, repr=False, compare=False)
    """Known stamps by their position, without those that contradict others; whether there were any."""

    def __post_init__(self) -> None:
        """Raise ValueError if there is no start, or if it lies after the end."""
        object.__setattr__(self, "_believed", self._trusted())

    @property
    def start(self) -> int:
        """The first known stamp, monotonic nanoseconds."""
        return next(iter(self._believed[0].values()))

    @property
    def duration(self) -> int:
        """Nanoseconds from start to end: what the phases add up to."""
        return self.ended - self.start

    def phases(self) -> tuple[Phase, ...]:
        """
        The parts of this request, in order, none of zero length.

        Their durations are positive and add up to ``duration`` exactly. A
        request that ended early is cut in the phase that it was in. Stamps
        that contradict each other are not repaired: each one concerned is
        dropped, and the time around it is ``unsplit``.
        """
        stamps, contradiction = self._believed
        early = self.outcome != "ok"
        parts: list[Phase] = []
        index, begin = -1, 0
        for following, end in stamps.items():
            if end > begin and index >= 0:
                usual = following == index + 1
                parts.append(Phase(PHASES[index], begin, end) if usual else _part(index, following, begin, end))
            index, begin = following, end
        if index == _POSTPROCESS:
            parts.extend(self._postprocess(begin))
        elif begin < self.ended:
            if early and self.cut_known and not contradiction:
                parts.append(Phase(PHASES[index], begin, self.ended))
            else:
                last = _FIRST_TOKEN if early and index < _FIRST_TOKEN else len(PHASES)
                parts.append(_part(index, last, begin, self.ended))
        return tuple(parts)

    def time_to_first_token(self) -> int | None:
        """Nanoseconds from start to the first output token, None if unknown or none."""
        first = self._believed[0].get(_FIRST_TOKEN)
        return None if first is None or self.output_tokens == 0 else first - self.start

    def time_per_output_token(self) -> float | None:
        """
        Nanoseconds, (last - first token) / (output tokens - 1).

        None unless the request ended in full with two tokens or more. With
        children it is the mean over them: their decodes overlap in time.
        """
        if self.children:
            known = [t for t in (c.time_per_output_token() for c in self.children) if t is not None]
            return sum(known) / len(known) if known else None
        first = self._believed[0].get(_FIRST_TOKEN)
        last = self._believed[0].get(_POSTPROCESS)
        tokens = self.output_tokens or 0
        if self.outcome != "ok" or first is None or last is None or tokens < 2:
            return None
        return (last - first) / (tokens - 1)

    def wall(self, stamp: int) -> int:
        """A monotonic stamp as nanoseconds since the Unix epoch."""
        return stamp + self.wall_offset

    def _stamps(self) -> tuple[int | None, ...]:
        return (
            self.arrived,
            self.parsed,
            self.received,
            self.submitted,
            self.scheduled,
            self.first_token,
            self.last_token,
        )

    def _trusted(self) -> tuple[dict[int, int], bool]:
        known = {index: stamp for index, stamp in enumerate(self._stamps()) if stamp is not None}
        if not known:
            raise ValueError("a timeline needs at least one stamp beside its end")
        previous = start = next(iter(known.values()))
        if start > self.ended:
            raise ValueError(f"a request cannot end {start - self.ended} ns before it starts")
        for stamp in known.values():
            if not previous <= stamp <= self.ended:
                break
            previous = stamp
        else:
            return known, False
        inside = [(i, t) for i, t in known.items() if start <= t <= self.ended]
        agreed = [(i, t) for i, t in inside if all((i < j) == (t < u) or t == u or i == j for j, u in inside)]
        return dict(agreed), True

    def _postprocess(self, begin: int) -> list[Phase]:
        """Delivery after the last token; the part blocked by the peer is network."""
        stall = self.stall if 0 <= self.stall <= self.ended - begin else 0
        turn = self.ended - stall
        parts = [Phase(PHASES[_POSTPROCESS], begin, turn)] if turn > begin else []
        return parts if turn == self.ended else [*parts, Phase("network", turn, self.ended)]


def _part(index: int, following: int, begin: int, end: int) -> Phase:
    if following == index + 1:
        return Phase(PHASES[index], begin, end)
    return Phase(UNSPLIT, begin, end, PHASES[index:following])


def wall_offset() -> int:
    """
    Wall clock minus monotonic clock, nanoseconds.

    Read once per request, so that a step of the wall clock moves a request as
    a whole and can never stretch it.
    """
    return time.time_ns() - time.monotonic_ns()


def nanoseconds(seconds: float | None) -> int | None:
    """
    An engine's stamp in monotonic seconds; None and 0.0 mean "not stamped".

    vLLM initialises its stamps with 0.0 (vllm/v1/metrics/stats.py).
    """
    return round(seconds * 1e9) if seconds else None


def ending(error: BaseException | None, *, accepted: bool) -> tuple[Outcome, str | None]:
    """
    Outcome and error type of a call that ended with this exception, or without.

    A caller that goes away (cancelled task, closed generator, interrupt) makes
    an abort; an error before the engine accepted the request, a reject.
    """
    if error is None:
        return "ok", None
    name = type(error).__qualname__
    if name in ("CancelledError", "GeneratorExit", "KeyboardInterrupt"):
        return "abort", "cancelled"
    return ("error" if accepted else "reject"), name


def merged(children: Sequence[Timeline]) -> dict[str, Any]:
    """
    What several samples of one prompt are as one request: fields for Timeline.

    Cut at the earliest submission, scheduling and first token and, if all came
    to their end, the latest last token. The prompt counts once (as the sample
    that was scheduled first found it), the output tokens of all add up.
    """
    if not children:
        return {}
    first = min(children, key=lambda child: (child.scheduled is None, child.scheduled or 0))
    last_tokens = [child.last_token for child in children if child.last_token is not None]
    return {
        "submitted": _earliest(child.submitted for child in children),
        "scheduled": first.scheduled,
        "first_token": _earliest(child.first_token for child in children),
        "last_token": max(last_tokens) if len(last_tokens) == len(children) else None,
        "cut_known": first.cut_known,
        "finish_reasons": tuple(reason for child in children for reason in child.finish_reasons),
        "prompt_tokens": first.prompt_tokens,
        "cached_tokens": first.cached_tokens,
        "output_tokens": _total(child.output_tokens for child in children),
        "preemptions": _total(child.preemptions for child in children),
        "preemption_stall": sum(child.preemption_stall for child in children),
        "attributes": first.attributes,
        "children": tuple(children) if len(children) > 1 else (),
    }


def _earliest(stamps: Iterable[int | None]) -> int | None:
    return min((stamp for stamp in stamps if stamp is not None), default=None)


def _total(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
