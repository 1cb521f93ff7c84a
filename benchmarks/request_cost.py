"""
What one request and one token cost: ``python benchmarks/request_cost.py``.

Thread CPU time, the cases in turn in every round, the least round of each; the
loop around them is measured the same way and subtracted. A real OTLP exporter
runs, its collector in another process. A calibration loop in the same rounds
says how fast this machine is now, compared with the AMD EPYC of docs/cost.md.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

import otel_llm
from benchmarks.paired import machine, sink
from otel_llm.config import Settings, Targets
from otel_llm.pipeline import spans
from otel_llm.pipeline.exporters import SpanOutlet
from otel_llm.pipeline.providers import Pipeline
from otel_llm.streams import watched_async
from otel_llm.telemetry.context import capture
from otel_llm.telemetry.recorder import Recorder
from otel_llm.timeline import Timeline

ROUNDS, CALLS, TOKENS = 80, 60, 4_000
MS = 1_000_000

BUDGETS = {
    "request, its timeline made and told": 100.0,
    "request recorded, 100 % sampled": 100.0,
    "request recorded, 1 % sampled": 40.0,
    "sampled request exported": 100.0,
    "output token, watched stream": 0.3,
    "hook, nothing instrumented": 1.0,
}
"""Microseconds of thread CPU."""

CALIBRATION_US = 32.6
"""What ``calibration`` takes on the AMD EPYC that docs/cost.md names when it does nothing else."""


class Pair(NamedTuple):
    first: int
    second: str


def calibration() -> int:
    """A fixed piece of ordinary Python: calls, tuples, dictionaries, strings."""
    found: dict[str, Pair] = {}
    for number in range(60):
        found[f"key {number % 7}"] = Pair(number, "value")
    return len(found)


def timeline() -> Timeline:
    """A chat request as the vLLM hooks make it, seen from a server edge."""
    now = time.monotonic_ns() - 800 * MS
    return Timeline(
        engine="vllm", operation="chat", model="m", request_id="chatcmpl-1", wall_offset=time.time_ns() - now,
        arrived=now, parsed=now + MS, received=now + 2 * MS, submitted=now + 5 * MS, scheduled=now + 40 * MS,
        first_token=now + 90 * MS, last_token=now + 700 * MS, ended=now + 702 * MS, finish_reasons=("length",),
        prompt_tokens=512, cached_tokens=128, output_tokens=64, preemptions=0, context=capture(),
        attributes={"otel_llm.engine.queue_time": 0.03},
    )  # fmt: skip


def pipeline(ratio: str) -> tuple[Pipeline, Recorder]:
    os.environ["OTEL_TRACES_SAMPLER"], os.environ["OTEL_TRACES_SAMPLER_ARG"] = "parentbased_traceidratio", ratio
    made = Pipeline(Settings().service_name, frozenset({"traces", "metrics"}))
    return made, Recorder(made.spans, made.bulk, targets=Targets(0.5, 0.05), loss=made.loss)


def per_call(call: Callable[[], object], calls: int = CALLS) -> float:
    begin = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - begin) / calls / 1000


def sdk(url: str, ratio: float) -> Recorder:
    """As with an application's own providers: every span and measurement through the SDK."""
    traces = TracerProvider(ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
    metrics = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return Recorder(traces, metrics, targets=Targets(0.5, 0.05))


class Item:
    finished = False


class Watcher:
    """What the vLLM hooks do for an item."""

    def started(self) -> None: ...

    def item(self, output: Item) -> None:
        if output.finished:
            self.ended(None)

    def ended(self, error: BaseException | None) -> None: ...


async def items() -> AsyncIterator[Item]:
    item = Item()
    for _ in range(TOKENS):
        yield item


def per_token(watched: bool) -> float:
    async def read() -> None:
        stream: Any = items()
        async for _ in watched_async(stream, Watcher()) if watched else stream:
            pass

    begin = time.thread_time_ns()
    asyncio.run(read())
    return (time.thread_time_ns() - begin) / TOKENS / 1000


def nothing() -> None:
    with otel_llm.request(model="m"):
        pass


class Queue:
    """Keeps what is queued, for the export to be measured apart."""

    def __init__(self) -> None:
        self.kept: list[spans.Decided] = []

    def put(self, decided: spans.Decided) -> None:
        self.kept.append(decided)


def export(made: Pipeline) -> Callable[[], float]:
    """The export of a batch, in this thread."""
    assert made.spans is not None
    maker = made.spans.maker("otel_llm")
    queue = Queue()
    maker._queue = queue  # type: ignore[assignment] # all that a maker needs of it
    recorder = Recorder(made.spans, None)
    assert recorder._spans is not None
    recorder._spans._spans = maker
    for _ in range(spans.BATCH):
        recorder.record(timeline())
    (outlet,) = made.spans.queue._outlets
    assert isinstance(outlet, SpanOutlet)
    return lambda: per_call(lambda: outlet.deliver(queue.kept, lambda: None), 1) / len(queue.kept)


def measure(url: str, rounds: int = ROUNDS, *, compare: bool = False) -> dict[str, float]:
    """Microseconds by the names of BUDGETS, the calibration and, to compare, the SDK's own way."""
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    (everything, all_of_them), (a_few, one_percent) = pipeline("1.0"), pipeline("0.01")
    tell = everything.deferring(all_of_them.record)

    def settle() -> None:
        """Nothing of one case is recorded or sent beside the next; ``flush`` gives up after three seconds in all."""
        assert everything.spans is not None
        everything.drain()
        everything.spans.force_flush()

    def told() -> float:
        cost = per_call(lambda: tell(timeline()))
        settle()
        return cost

    cases: dict[str, Callable[[], float]] = {
        "calibration": lambda: per_call(calibration),
        "loop": lambda: per_call(timeline),
        "told": told,
        "all": lambda: per_call(lambda: all_of_them.record(timeline())),
        "few": lambda: per_call(lambda: one_percent.record(timeline())),
        "export": export(everything),
        "plain": lambda: per_token(watched=False),
        "watched": lambda: per_token(watched=True),
        "nothing": lambda: per_call(nothing, 2_000),
    }
    if compare:
        all_by_sdk, few_by_sdk = sdk(url, 1.0), sdk(url, 0.01)
        cases["sdk all"] = lambda: per_call(lambda: all_by_sdk.record(timeline()))
        cases["sdk few"] = lambda: per_call(lambda: few_by_sdk.record(timeline()))
    least = {name: case() for name, case in cases.items()}
    for _ in range(rounds):
        for name, case in cases.items():
            least[name] = min(least[name], case())
        settle()
    everything.shutdown()
    a_few.shutdown()
    names = iter(BUDGETS)
    found = {
        next(names): least["told"],
        next(names): least["all"] - least["loop"],
        next(names): least["few"] - least["loop"],
        next(names): least["export"],
        next(names): least["watched"] - least["plain"],
        next(names): least["nothing"],
    }
    if compare:
        found["own providers, 100 % sampled"] = least["sdk all"] - least["loop"]
        found["own providers, 1 % sampled"] = least["sdk few"] - least["loop"]
    return found | {"calibration": least["calibration"]}


def main() -> None:
    with sink() as url:
        found = measure(url, compare=True)
    slow = found.pop("calibration") / CALIBRATION_US
    print(machine("opentelemetry-sdk"))
    print(f"least of {ROUNDS} interleaved rounds, us of thread CPU; this machine took {slow:.2f} times as long as")
    print("the AMD EPYC of docs/cost.md for the calibration loop")
    for name, cost in found.items():
        budget = f"   budget {BUDGETS[name]:g}" if name in BUDGETS else ""
        print(f"  {name:<34} {cost:8.2f}{budget}")


if __name__ == "__main__":
    main()
