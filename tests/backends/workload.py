"""
Requests with known times, sent through otel-llm's own pipeline.

Run as a program it is a service that handles them and leaves: the pipeline is
built from the ``OTEL_*`` variables, and what is queued is sent at exit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import otel_llm
from otel_llm.instrumentation import emit
from otel_llm.timeline import Timeline, wall_offset

TICK = 15_625_000
"""Nanoseconds: 1/64 s, so that sums of seconds are exact in binary and in decimal."""

MODEL = "tiny"


@dataclass(frozen=True)
class Request:
    """Lengths of the phases in ticks, and tokens."""

    queue: int
    prefill: int
    decode: int
    postprocess: int
    prompt_tokens: int
    output_tokens: int

    @property
    def total(self) -> int:
        return self.queue + self.prefill + self.decode + self.postprocess

    def timeline(self, ended: int) -> Timeline:
        submitted = ended - self.total * TICK
        scheduled = submitted + self.queue * TICK
        first_token = scheduled + self.prefill * TICK
        return Timeline(
            engine="vllm",
            operation="chat",
            model=MODEL,
            submitted=submitted,
            scheduled=scheduled,
            first_token=first_token,
            last_token=first_token + self.decode * TICK,
            ended=ended,
            wall_offset=wall_offset(),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            finish_reasons=("stop",),
        )


REQUESTS = tuple(
    Request(
        queue=1 + number % 7,
        prefill=2 + number % 3 * 5,
        decode=8 * (1 + number % 5),
        postprocess=1,
        prompt_tokens=10 + number,
        output_tokens=9,
    )
    for number in range(40)
)


def main() -> None:
    otel_llm.instrument(slo={"ttft": 0.25, "tpot": 0.05})
    now = time.monotonic_ns()
    for request in REQUESTS:
        emit(request.timeline(now))


if __name__ == "__main__":
    main()
