"""The demo from start to end: model, collector, server, load, report."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from otel_llm.demo.load import Load
from otel_llm.demo.screen import LiveTable, Screen
from otel_llm.demo.server import MODEL, Server
from otel_llm.report import findings, page
from otel_llm.report.levels import Level, Summary, summarise
from otel_llm.report.receiver import Receiver
from otel_llm.report.requests import Request, requests

_ARRIVAL_SECONDS = 15.0
_GRACE_SECONDS = 10.0
_REDRAW_SECONDS = 0.5
_WARM_UP_REQUESTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What can be chosen."""

    levels: Sequence[int]
    """Numbers of requests in flight, one after the other."""
    seconds: float
    """Time for which each of them is held."""
    html: Path
    """The page to write."""


@dataclass(slots=True)
class Outcome:
    """What was measured."""

    levels: list[Level] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    setting: str = ""


async def run(options: Options, screen: Screen) -> list[str]:
    """
    Run the demo and return what is wrong with its result: nothing, if every moment is accounted for.

    Raises ServerError if vLLM does not come up. Whatever happens, no process
    and no temporary file is left behind.
    """
    folder = _scratch()
    try:
        outcome, receiver = await _measure(options, screen, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summaries = [summarise(level, outcome.requests, 0) for level in outcome.levels]
    sentences = findings.sentences(summaries, outcome.requests, receiver)
    with screen.step(f"Writing {options.html}"):
        last = {exchange.trace_id for exchange in outcome.levels[-1].exchanges}
        drawn = [request for request in outcome.requests if request.trace_id in last]
        page.write(options.html, summaries, drawn, setting=outcome.setting, findings=sentences)
    screen.summary(summaries, sentences)
    return findings.faults(summaries)


def _scratch() -> Path:
    """A folder for the model, the log and vLLM's sockets, whose paths have room for 107 characters."""
    roomy = len(tempfile.gettempdir()) <= 50
    return Path(tempfile.mkdtemp(prefix="otel-llm-", dir=None if roomy else "/tmp"))


async def _measure(options: Options, screen: Screen, folder: Path) -> tuple[Outcome, Receiver]:
    outcome = Outcome()
    with screen.step("Building a tiny random Qwen2 model with its tokenizer, 5 MB; nothing is downloaded"):
        model = await _build_model(folder / "model")
    with Receiver() as receiver:
        server = Server(model, receiver.url, folder / "vllm.log")
        try:
            screen.say(f"OTLP goes to {receiver.url}, a receiver inside this program.")
            with screen.step(f"Starting a real vLLM server on {server.url}, instrumented by OTEL_LLM_ENABLED=1 alone"):
                server.start()
                await server.ready()
                outcome.setting = await _setting(server)
            load = Load(server.url, MODEL)
            with screen.step("Warming up, these requests are not counted"):
                await load.warm_up(_WARM_UP_REQUESTS)
            doing = f"Streaming requests of mixed lengths, {options.seconds:g} s at each number in flight"
            with screen.table(doing) as live:
                for position, concurrency in enumerate(options.levels):
                    outcome.levels.append(Level(concurrency))
                    waiting = options.levels[position + 1 :]
                    await _hold(outcome.levels, waiting, load, options.seconds, server, receiver, live)
        except BaseException:
            server.stop(grace=1)
            raise
        server.stop(grace=_GRACE_SECONDS)  # the metrics of the last seconds arrive here
        outcome.requests = requests(receiver.spans())
    return outcome, receiver


async def _hold(
    levels: list[Level],
    waiting: Sequence[int],
    load: Load,
    seconds: float,
    server: Server,
    receiver: Receiver,
    live: LiveTable,
) -> None:
    """Hold the last of the levels, and draw what has arrived meanwhile."""
    *before, level = levels
    done = [summarise(one, requests(receiver.spans()), 0) for one in before]
    earlier = len(receiver.spans())

    def current() -> Summary:
        return summarise(level, requests(receiver.spans(earlier)), time.time_ns())

    async def draw() -> None:
        while True:
            live.update(done, current(), waiting)
            await asyncio.sleep(_REDRAW_SECONDS)

    drawing = asyncio.ensure_future(draw())
    try:
        await load.run(level, seconds, server.check)
        deadline = time.monotonic() + _ARRIVAL_SECONDS
        while (state := current()).missing or state.residual:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
    live.update([*done, current()], None, waiting)
    live.finished(current())


async def _build_model(folder: Path) -> Path:
    """In a process of its own, so that torch does not stay in memory."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "otel_llm.demo.tiny_model", str(folder), env=os.environ | {"TMPDIR": str(folder.parent)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the model could not be built:\n{output.decode(errors='replace')}")
    return folder


async def _setting(server: Server) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/version") as answer:
        version = (await answer.json())["version"]
    cores = len(os.sched_getaffinity(0))
    return (
        f"vLLM {version} on {cores} CPU cores, a random Qwen2 model of 5 MB, streaming chat and completion requests of "
        f"mixed lengths, {time.strftime('%Y-%m-%d %H:%M %Z')}"
    )
