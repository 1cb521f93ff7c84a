"""User code that has to type-check, under mypy --strict and pyright; it is not run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from typing_extensions import assert_type

import otel_llm


def set_up(tracer_provider: TracerProvider, meter_provider: MeterProvider) -> None:
    otel_llm.instrument()
    otel_llm.instrument(
        service_name="chat",
        engines=["vllm"],
        slo={"ttft": 0.5, "tpot": 0.05},
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )
    state = otel_llm.status()
    assert_type(state, otel_llm.Status)
    assert_type(state.engines["vllm"].version, str | None)
    otel_llm.uninstrument()


def sink(timeline: otel_llm.Timeline) -> None:
    assert_type(timeline.duration, int)
    assert_type(timeline.phases(), tuple[otel_llm.Phase, ...])
    assert_type(timeline.time_per_output_token(), float | None)


stop = otel_llm.add_sink(sink)
stop()


@otel_llm.measured(model="mine")
def plain(prompt: str, *, limit: int = 3) -> list[int]:
    return [len(prompt)] * limit


@otel_llm.measured(model="mine")
async def coroutine(prompt: str) -> list[int]:
    return [len(prompt)]


@otel_llm.measured(count=len)
def stream(prompt: str) -> Iterator[list[int]]:
    yield [len(prompt)]


@otel_llm.measured()
async def async_stream(prompt: str) -> AsyncIterator[int]:
    yield len(prompt)


async def use() -> None:
    assert_type(plain("a", limit=2), list[int])
    assert_type(await coroutine("a"), list[int])
    assert_type(next(stream("a")), list[int])
    async for token in async_stream("a"):
        assert_type(token, int)
    with otel_llm.request(model="mine", operation="chat") as r:
        r.scheduled()
        r.prompt(tokens=5, cached=2)
        r.first_token()
        r.tokens(3)
