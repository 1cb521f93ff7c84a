"""
A real vLLM server under mixed traffic for a long time, with a collector that goes away and comes back.

    python -m tests.faults.soak --minutes 30

Prints what it sees once a minute and an account at the end; exits with 1 if something does not hold:
every request is counted, every span is delivered or counted as lost, what the collector took and answered for is
what the server says it sent, no error of ours, no memory, thread or file is left behind, the exit is quick.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from otel_llm.demo import tiny_model
from otel_llm.demo.server import Server
from otel_llm.report import otlp
from otel_llm.report.receiver import Receiver
from tests.engines.test_vllm_soak import WAYS, ask, tell_sent
from tests.faults.collectors import collector
from tests.faults.programs import nobody

CONCURRENCY = 12
UP, DOWN = 20.0, 8.0
"""Seconds for which the collector is there and is away."""
WARM = 0.25
"""Part of the time in which memory may still grow: pools, caches, compiled code."""
BLOCKS = 10
"""Parts of the rest whose means are compared: neighbouring samples are not independent."""


class Tally(Receiver):
    """Counts spans and keeps the newest points, so that the soak itself does not grow."""

    spans_taken = 0

    def take_traces(self, body: bytes) -> None:
        taken = sum(1 for _ in otlp.spans(body))
        with self._lock:
            self.spans_taken += taken


@dataclass
class Run:
    """What is seen of one run."""

    tally: Tally = field(default_factory=Tally)
    fates: Counter[str] = field(default_factory=Counter)
    looks: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    restarts: int = 0
    unanswered: list[bytes] = field(default_factory=list)
    """What collectors took, and were gone before they could say so: to the server it is lost."""


@contextlib.contextmanager
def coming_and_going(run: Run, port: int, folder: Path) -> Iterator[Any]:
    """A collector on this port; ``toggle`` takes it away or brings it back."""
    with contextlib.ExitStack() as stack:
        there: list[contextlib.ExitStack] = []

        def toggle() -> None:
            if there:
                there.pop().close()
                run.restarts += 1
            else:
                there.append(contextlib.ExitStack())
                # From its first moment: what waited for it comes at once.
                kept: dict[str, Any] = {"receiver": run.tally, "sent": Forgetful(), "unanswered": run.unanswered}
                there[0].enter_context(collector("http/protobuf", "healthy", folder, port, **kept))

        toggle()
        stack.callback(lambda: there and toggle())
        yield toggle


class Forgetful(list[bytes]):
    """Keeps nothing."""

    def __iadd__(self, _more: Any) -> Forgetful:  # type: ignore[override,misc]
        return self


async def look(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(f"{url}/account") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def drive(run: Run, url: str, seconds: float, toggle: Any) -> None:
    """Traffic, samples and the collector's comings and goings, then silence until all is told."""
    choose, end = random.Random(1), time.monotonic() + seconds
    connector, tracing = aiohttp.TCPConnector(force_close=True, limit=0), aiohttp.TraceConfig()
    tracing.on_request_chunk_sent.append(tell_sent)
    settings: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total=300), "trace_configs": [tracing]}
    async with aiohttp.ClientSession(connector=connector, **settings) as session:

        async def client() -> None:
            while time.monotonic() < end:
                way = choose.choices(list(WAYS), list(WAYS.values()))[0]
                run.fates[f"{way}: {await ask(session, url, secrets.token_hex(16), way, choose)}"] += 1

        async def watch() -> None:
            minute = time.monotonic()
            while time.monotonic() < end:
                run.looks.append((time.monotonic(), await look(session, url)))
                if time.monotonic() >= minute:
                    minute += 60
                    tell(run)
                await asyncio.sleep(2)

        async def restart() -> None:
            there = True
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(UP if there else DOWN, left))
                if time.monotonic() < end:
                    await asyncio.to_thread(toggle)
                    there = not there
            if not there:
                await asyncio.to_thread(toggle)

        await asyncio.gather(watch(), restart(), *(client() for _ in range(CONCURRENCY)))
        settled = time.monotonic() + 60
        while time.monotonic() < settled:  # requests that were left, and the last exports
            await asyncio.sleep(3)
            last = await look(session, url)
            run.looks.append((time.monotonic(), last))
            sent = last["exported"]["spans"] + last["dropped"]["spans"]
            if sent == last["spans"] and last["requests"] == sum(run.fates.values()):
                break


def tell(run: Run) -> None:
    said = run.looks[-1][1]
    sent, lost = said["exported"]["spans"], said["dropped"]["spans"]
    print(
        f"{sum(run.fates.values()):7} requests  {said['rss'] / 2**20:8.2f} MiB  {said['blocks']:9} blocks"
        f"  {said['threads']:3} threads  {said['files']:3} files  {sent:8} spans sent  {lost:6} lost",
        flush=True,
    )


def slope(looks: list[tuple[float, dict[str, Any]]]) -> tuple[float, float]:
    """Bytes per minute of the resident memory, and the half width of its 95 % confidence interval."""
    began, ended = looks[0][0], looks[-1][0]
    blocks: list[list[tuple[float, float]]] = [[] for _ in range(BLOCKS)]
    for at, said in looks:
        if (part := (at - began) / (ended - began) - WARM) >= 0:
            blocks[min(int(part / (1 - WARM) * BLOCKS), BLOCKS - 1)].append((at, said["rss"]))
    means = [[statistics.fmean(column) for column in zip(*block, strict=True)] for block in blocks if block]
    times, sizes = [at / 60 for at, _ in means], [size for _, size in means]
    found = statistics.linear_regression(times, sizes)
    middle = statistics.fmean(times)
    residual = sum((size - found.intercept - found.slope * at) ** 2 for at, size in zip(times, sizes, strict=True))
    spread = (residual / (len(times) - 2) / sum((at - middle) ** 2 for at in times)) ** 0.5
    return found.slope, 2.306 * spread  # Student's t for 8 degrees of freedom


def account(run: Run, exit_seconds: float, status: int | None) -> list[str]:
    """Print it; return what does not hold."""
    first, last = run.looks[1][1], run.looks[-1][1]
    made, sent, lost = last["spans"], last["exported"]["spans"], last["dropped"]["spans"]
    unanswered = sum(1 for body in run.unanswered for _ in otlp.spans(body))
    durations = sum(point.count or 0 for point in run.tally.points("gen_ai.server.request.duration"))
    asked = sum(run.fates.values())
    growth, width = slope([found for found in run.looks if found[0] <= run.looks[-1][0]])
    for fate, count in sorted(run.fates.items()):
        print(f"  {count:7}  {fate}")
    print(f"requests  {asked} asked, {last['requests']} reported, {durations} in the metrics that arrived")
    print(f"spans     {made} made = {sent} sent + {lost} lost")
    print(f"collector took {run.tally.spans_taken} spans, {unanswered} of them without an answer")
    print(f"collector {run.restarts} times away")
    low, high = (growth - width) / 1024, (growth + width) / 1024
    print(f"memory    {growth / 1024:+.0f} KiB/min (95 %: {low:+.0f} to {high:+.0f})")
    print(f"threads   {first['threads']} -> {last['threads']}    files {first['files']} -> {last['files']}")
    print(f"errors    {last['errors'] or 'none'}    exit {exit_seconds:.1f} s, status {status}")
    rules = {
        "every request is reported once": asked == last["requests"],
        "every request is in the metrics": durations == last["requests"],
        "every span is sent or counted as lost": made == sent + lost,
        "what was sent is what the collector answered for": sent == run.tally.spans_taken - unanswered,
        "something was lost, so that this shows anything": lost > 0 or run.restarts == 0,
        "no request went without spans": last["capped"]["spans"] == 0,
        "no error of ours": not last["errors"],
        "memory does not grow": growth - width <= 0,
        "no thread is left": last["threads"] <= first["threads"] + 1,
        "no file is left": last["files"] <= first["files"] + 2,
        "the exit is quick": exit_seconds < 20,
    }
    return [rule for rule, holds in rules.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    seconds = parser.parse_args().minutes * 60
    run, port = Run(), int(nobody().rpartition(":")[2])
    with tempfile.TemporaryDirectory() as scratch, coming_and_going(run, port, Path(scratch)) as toggle:
        folder = Path(scratch)
        server = Server(tiny_model.build(folder / "model"), f"http://127.0.0.1:{port}", folder / "log")
        server._command += ["--middleware", "tests.faults.account.Account"]
        server._environment |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "3", "PYTHONPATH": str(Path(__file__).parents[2])}
        server.start()
        try:
            asyncio.run(server.ready())
            asyncio.run(drive(run, server.url, seconds, toggle))
        finally:
            began = time.monotonic()
            process = server._process
            server.stop(grace=30)
        took = time.monotonic() - began
        broken = account(run, took, None if process is None else process.returncode)
    for rule in broken:
        print(f"BROKEN    {rule}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
