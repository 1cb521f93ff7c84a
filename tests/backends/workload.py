"""
Requests with known times, sent through otel-llm's own pipeline.

Run as a program it is a service that handles them and leaves: the pipeline is
built from the ``OTEL_*`` variables, and what is queued is sent at exit. With a
number of seconds as argument it handles ``FIRST`` at once and the others over
that time, faster and faster.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import otel_llm
from otel_llm.instrumentation import emit
from otel_llm.timeline import Timeline, wall_offset

TICK = 15_625_000
"""Nanoseconds: 1/64 s, so that sums of seconds are exact in binary and in decimal."""

MODEL = "tiny"
TTFT_TARGET, TPOT_TARGET = 0.5, 0.05
FIRST_EXPORT_SECONDS = 1.5


class Part(NamedTuple):
    """What is known of a phase before any of it is measured."""

    phase: str
    ticks: int


@dataclass(frozen=True)
class Request:
    """Lengths of the phases in ticks, and tokens."""

    accept: int
    upload: int
    preprocess: int
    queue: int
    prefill: int
    decode: int
    postprocess: int
    stall: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    scheduled_known: bool = True
    failed: bool = False

    def parts(self) -> list[Part]:
        """All phases in order, none empty."""
        waiting = [("queue", self.queue), ("prefill", self.prefill)]
        parts = [
            ("accept", self.accept),
            ("network", self.upload),
            ("preprocess", self.preprocess),
            *(waiting if self.scheduled_known else [("unsplit", self.queue + self.prefill)]),
            ("decode", self.decode),
            ("postprocess", self.postprocess),
            ("network", self.stall),
        ]
        return [Part(*part) for part in parts if part[1]]

    @property
    def total(self) -> int:
        return sum(part.ticks for part in self.parts())

    @property
    def first_token(self) -> int:
        """Ticks from start to first token."""
        return self.accept + self.upload + self.preprocess + self.queue + self.prefill

    @property
    def per_output_token(self) -> float:
        """Ticks per output token after the first."""
        return self.decode / (self.output_tokens - 1)

    @property
    def good(self) -> bool:
        """Whether it met both targets and did not fail."""
        second = 1e9 / TICK
        in_time = self.first_token <= TTFT_TARGET * second and self.per_output_token <= TPOT_TARGET * second
        return in_time and not self.failed

    def timeline(self, ended: int) -> Timeline:
        arrived = ended - self.total * TICK
        parsed = arrived + self.accept * TICK
        received = parsed + self.upload * TICK
        submitted = received + self.preprocess * TICK
        scheduled = submitted + self.queue * TICK
        first_token = scheduled + self.prefill * TICK
        return Timeline(
            engine="vllm",
            operation="chat",
            model=MODEL,
            arrived=arrived,
            parsed=parsed,
            received=received,
            submitted=submitted,
            scheduled=scheduled if self.scheduled_known else None,
            first_token=first_token,
            last_token=first_token + self.decode * TICK,
            stall=self.stall * TICK,
            ended=ended,
            wall_offset=wall_offset(),
            outcome="error" if self.failed else "ok",
            error_type="EngineDeadError" if self.failed else None,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            finish_reasons=() if self.failed else ("stop",),
        )


def _request(number: int) -> Request:
    return Request(
        accept=number % 2,
        upload=number % 3,
        preprocess=1,
        queue=1 + number % 7 * 6,
        prefill=2 + number % 3 * 12,
        decode=8 * (1 + number % 5),
        postprocess=1 + number % 2,
        stall=number % 4,
        prompt_tokens=10 + number,
        cached_tokens=number % 8,
        output_tokens=9,
        scheduled_known=number % 11 != 10,
        failed=number % 13 == 12,
    )


REQUESTS = tuple(_request(number) for number in range(160))
FIRST = 40
"""The first so many hold every phase, outcome and verdict that occurs."""


def main(seconds: float) -> None:
    otel_llm.instrument(slo={"ttft": TTFT_TARGET, "tpot": TPOT_TARGET})
    for request in REQUESTS[:FIRST]:
        emit(request.timeline(time.monotonic_ns()))
    # Later increases are counted from the first export, which sets all series up.
    time.sleep(FIRST_EXPORT_SECONDS if seconds else 0)
    rest = REQUESTS[FIRST:]
    # The pauses shrink linearly to nothing and take the given time in total.
    longest = 2 * seconds / (len(rest) - 1)
    for index, request in enumerate(rest):
        emit(request.timeline(time.monotonic_ns()))
        time.sleep(longest * (1 - index / (len(rest) - 1)))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
