"""
Requests with known times, sent through otel-llm's own pipeline.

Run as a program it is a service that handles them and leaves: the pipeline is
built from the ``OTEL_*`` variables, and what is queued is sent at exit. With a
number of seconds as argument it handles ``FIRST`` at once and the others over
that time, faster and faster, and is its own client too.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import otel_llm
from otel_llm import instrumentation
from otel_llm.client_timeline import ClientTimeline
from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.instrumentation import begin_client, emit
from otel_llm.pairing import ServerTiming
from otel_llm.recording import TokenGaps
from otel_llm.timeline import Timeline, wall_offset

TICK = 15_625_000
"""Nanoseconds: 1/64 s, so that sums of seconds are exact in binary and in decimal."""

MODEL = "tiny"
TTFT_TARGET, TPOT_TARGET = 0.5, 0.05
RUNNING, WAITING, KV_CACHE_USAGE = 3, 5, 0.25
EXPORT_SECONDS = 0.5


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
    connect: int = 1
    way_there: int = 1
    way_back: int = 1
    consumer: int = 2

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

    def client_parts(self) -> list[Part]:
        """The parts of the client's time, if its attempt did not fail; in no order."""
        if self.failed:
            rest = self.way_there + self.total + self.way_back + self.consumer
            return [Part("connect", self.connect), Part("unsplit", rest)]
        server = [part for part in self.parts() if part.phase != "network"]
        network = self.way_there + self.upload + self.stall + self.way_back
        own = [Part("connect", self.connect), Part("network", network), Part("consumer", self.consumer)]
        return own + server

    @property
    def client_total(self) -> int:
        return sum(part.ticks for part in self.client_parts())

    def client_timeline(self, ended: int) -> ClientTimeline:
        started = ended - self.client_total * TICK
        sent = started + self.connect * TICK
        first = sent + (self.way_there + self.first_token) * TICK
        phases: dict[str, int] = {}
        for part in self.parts():
            phases[part.phase] = phases.get(part.phase, 0) + part.ticks * TICK
        return ClientTimeline(
            operation="chat",
            provider="vllm",
            model=MODEL,
            started=started,
            sent=sent,
            first_body=first,
            first_token=first,
            ended=ended,
            wall_offset=wall_offset(),
            backlog=self.consumer * TICK,
            server=ServerTiming(phases, "vllm", first_body=self.first_token * TICK),
            outcome="error" if self.failed else "ok",
            error_type="RemoteProtocolError" if self.failed else None,
            status=200,
        )


def tell(request: Request) -> None:
    """What the engine says of itself around the request, in as many steps as it has output tokens."""
    step = request.decode * TICK / 1e9 / request.output_tokens
    emit(TokenGaps("vllm", MODEL, Counter({step: request.output_tokens - 1})))
    for number in range(request.output_tokens):
        prompt = 0 if number else request.prompt_tokens - request.cached_tokens
        emit(EngineStep("vllm", MODEL, 0, 1, prompt + 1, prefill_tokens=prompt, duration=step))
    emit(
        EngineState(
            engine="vllm",
            model=MODEL,
            running=RUNNING,
            waiting=WAITING,
            kv_cache_usage=KV_CACHE_USAGE,
            sleep_level=0,
            prefix_cache_queries=request.prompt_tokens,
            prefix_cache_hits=request.cached_tokens,
            preemptions=1,
            drafted=4,
            accepted=3,
        )
    )


def call(request: Request) -> None:
    """A client's attempt that leads to the request."""
    tell(request)
    ended = time.monotonic_ns()
    timeline = request.client_timeline(ended)
    span = begin_client("chat", MODEL, timeline.started + timeline.wall_offset)
    assert span is not None
    emit(request.timeline(ended))
    span.finish(timeline)


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


def serve(requests: Iterable[Request]) -> None:
    """Handle them at once, without a client."""
    for request in requests:
        emit(request.timeline(time.monotonic_ns()))


def pace(seconds: float) -> None:
    """Handle them over a time, as their own client, exporting at moments of its own choice."""
    for request in REQUESTS[:FIRST]:
        call(request)
    # One export sets all series up: later increases are those of the other requests, exactly.
    flush()
    exported = time.monotonic()
    rest = REQUESTS[FIRST:]
    # The pauses shrink linearly to nothing and take the given time in total.
    longest = 2 * seconds / (len(rest) - 1)
    for index, request in enumerate(rest):
        call(request)
        time.sleep(longest * (1 - index / (len(rest) - 1)))
        if time.monotonic() - exported > EXPORT_SECONDS:
            flush()
            exported = time.monotonic()


def flush() -> None:
    """Export what there is."""
    live = instrumentation._live.peek()
    assert live is not None
    assert live.pipeline is not None
    live.pipeline.flush()


if __name__ == "__main__":
    os.environ["OTEL_LLM_SAMPLED_PER_SECOND"] = "inf"  # all at once, and each is looked for
    otel_llm.instrument(slo={"ttft": TTFT_TARGET, "tpot": TPOT_TARGET})
    if len(sys.argv) > 1:
        pace(float(sys.argv[1]))
    else:
        serve(REQUESTS)
