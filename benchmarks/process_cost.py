"""
What a process pays beside its requests: ``python benchmarks/process_cost.py [--requests 1000000]``.

Import time; memory over many requests; and the delay of an event loop, which
is where other threads are felt, with and without.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import cell, machine, sink
from benchmarks.request_cost import pipeline, timeline

TICK, TICKS, PER_TICK, ROUNDS = 0.005, 200, 2, 10


def import_ms() -> float:
    """CPU of ``import otel_llm`` in a fresh interpreter, the least of seven."""
    program = "import time; t = time.process_time(); import otel_llm; print((time.process_time() - t) * 1e3)"
    command = [sys.executable, "-c", program]
    return min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(7))


def resident_mb() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(requests: int) -> list[tuple[int, float, int]]:
    """Requests so far, resident MiB, objects: all of them sampled, in ten pieces, after a first one."""
    made, recorder = pipeline("1.0")
    tell = made.deferring(recorder.record)
    assert made.spans is not None
    found: list[tuple[int, float, int]] = []
    for piece in range(11):
        for number in range(requests // 10):
            tell(timeline())
            if number % 500 == 499:
                made.drain()
                made.spans.force_flush()  # a queue that is full would spare the work
        gc.collect()
        found.append(((piece + 1) * (requests // 10), resident_mb(), len(gc.get_objects())))
    lost = made.loss.dropped()["spans"]
    assert not lost, lost
    made.shutdown()
    return found


async def delays(record: bool) -> list[float]:
    """Milliseconds by which a loop with 400 requests per second wakes up late, and a fifth of its time busy."""
    made, recorder = pipeline("1.0")
    tell = made.deferring(recorder.record)
    late: list[float] = []
    for _ in range(TICKS):
        due = time.perf_counter() + TICK
        await asyncio.sleep(TICK)
        late.append((time.perf_counter() - due) * 1e3)
        for _ in range(PER_TICK):
            one = timeline()
            if record:
                tell(one)
        busy = time.perf_counter() + TICK / 5
        while time.perf_counter() < busy:
            pass
    made.shutdown()
    return late


def loop_delay() -> dict[bool, list[float]]:
    """The 99th percentile of each round, without and with."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for record in random.sample((False, True), 2):
            found[record].append(statistics.quantiles(asyncio.run(delays(record)), n=100)[98])
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=1_000_000)
    requests = options.parse_args().requests
    with sink() as url:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        print(machine("opentelemetry-sdk"))
        print(f"  import otel_llm: {import_ms():.1f} ms of CPU   budget 50")
        late = loop_delay()
        rate = PER_TICK / (TICK * 1.2)
        print(f"  event loop late, 99th percentile of {TICKS} wake-ups, {rate:.0f} requests/s, all sampled, ms:")
        print(f"    without {cell(late[False], 2)}, with {cell(late[True], 2)}")
        held = memory(requests)
    print(f"  memory, all sampled: after {held[0][0]} requests {held[0][1]:.1f} MiB and {held[0][2]} objects,")
    print(f"    after {held[-1][0]} {held[-1][1]:.1f} MiB and {held[-1][2]} objects")


if __name__ == "__main__":
    main()
