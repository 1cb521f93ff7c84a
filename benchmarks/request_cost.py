"""
What one request and one token cost the serving thread: ``python benchmarks/request_cost.py``.

Thread CPU time, the cases in turn in every round, the least round of each; the
loop around them is measured the same way and subtracted. A real OTLP exporter
runs, its collector being a receiver in another process.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import otel_llm
from otel_llm.config import Settings
from otel_llm.pipeline.providers import Pipeline
from otel_llm.streams import watched_async
from otel_llm.telemetry.context import capture
from otel_llm.telemetry.recorder import Recorder
from otel_llm.timeline import Timeline

ROUNDS, CALLS, TOKENS = 15, 300, 20_000
MS = 1_000_000

COLLECTOR = "import sys, time; from otel_llm.report.receiver import Receiver\n" \
    "with Receiver() as r: print(r.url, flush=True); sys.stdin.read()"  # fmt: skip


@contextmanager
def collector() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COLLECTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()


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


def recorder(ratio: str) -> Recorder:
    os.environ["OTEL_TRACES_SAMPLER"], os.environ["OTEL_TRACES_SAMPLER_ARG"] = "parentbased_traceidratio", ratio
    pipeline = Pipeline(Settings().service_name, frozenset({"traces", "metrics"}))
    return Recorder(pipeline.spans, pipeline.bulk, loss=pipeline.loss)


def per_call(call: Callable[[], object], calls: int = CALLS) -> float:
    begin = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - begin) / calls / 1000


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
        async for _ in watched_async(items(), Watcher()) if watched else items():
            pass

    begin = time.thread_time_ns()
    asyncio.run(read())
    return (time.thread_time_ns() - begin) / TOKENS / 1000


def disabled() -> None:
    with otel_llm.request(model="m"):
        pass


def main() -> None:
    with collector() as url:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        all_of_them, one_percent = recorder("1.0"), recorder("0.01")
        cases: dict[str, Callable[[], float]] = {
            "loop": lambda: per_call(timeline),
            "request, everything on, 100 % sampled": lambda: per_call(lambda: all_of_them.record(timeline())),
            "request, 1 % sampled": lambda: per_call(lambda: one_percent.record(timeline())),
            "token, plain": lambda: per_token(watched=False),
            "token, watched": lambda: per_token(watched=True),
            "disabled `with request()`": lambda: per_call(disabled, 20_000),
        }
        least = {name: min(case() for _ in range(1)) for name, case in cases.items()}
        for _ in range(ROUNDS):
            for name, case in cases.items():
                least[name] = min(least[name], case())
            time.sleep(0.05)  # lets the exporter's thread drain
    budgets = {"request, everything on, 100 % sampled": 100, "request, 1 % sampled": 40, "disabled `with request()`": 1}
    print(f"load average {os.getloadavg()[0]:.1f}; microseconds of thread CPU, least of {ROUNDS} interleaved rounds")
    for name, budget in budgets.items():
        cost = least[name] - (least["loop"] if name.startswith("request") else 0)
        print(f"  {name:<40} {cost:7.2f}   budget {budget}")
    print(f"  {'output token':<40} {least['token, watched'] - least['token, plain']:7.2f}   budget 0.3")


if __name__ == "__main__":
    main()
