"""
One scripted run of real engines under rising load, with everything that it exports kept.

A vLLM server with few slots, whose clients are instrumented, and transformers'
continuous batching in a process of its own. Each engine's process writes the
timelines of its requests to a file, which owes nothing to metrics.

    live_run.py vllm|transformers|clients ...   the processes of the run
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from programs import ROOT
from tape import Tape

import otel_llm
from otel_llm.demo import server as demo_server
from otel_llm.demo import tiny_model
from otel_llm.demo.load import Load
from otel_llm.report.levels import Level
from otel_llm.timeline import Timeline

TTFT_TARGET = {"vllm": 0.15, "transformers": 0.06}
"""Met by single requests, missed by the last of many; seconds."""
TPOT_TARGET = 0.05
LEVELS = (1, 4, 12)
"""Requests in flight at the vLLM server, one level after the other."""
WAVES = (1, 8, 64)
"""Requests handed to transformers at once, likewise."""
LEVEL_SECONDS = 4.0
SEQUENCES = 4
WARM_UP = 6
EXPORT_SECONDS = 0.25
WINDOW_SECONDS = 4.0
"""Of the rates that the run is looked at with: sixteen exports, as Prometheus guesses at both ends of a window."""
RUN_ID = "rising"

_STAMPS = ("arrived", "parsed", "received", "submitted", "scheduled", "first_token", "last_token", "ended", "stall")
_KEPT = (*_STAMPS, "outcome", "prompt_tokens", "cached_tokens", "output_tokens", "wall_offset")

Kept = dict[str, Any]
"""The stamps of a request, monotonic nanoseconds, and its counts."""


@dataclass(frozen=True)
class LiveRun:
    """What is left of the run."""

    tape: Tape
    timelines: dict[str, list[Kept]]
    """Every request by engine."""
    began: float
    """Before the first process, seconds since the epoch."""
    loads: dict[str, tuple[float, float]]
    """Around the load on each engine after its warm-up, likewise; at both ends it was idle for a window of rates."""

    @property
    def end(self) -> float:
        """When all was over; vLLM's load is the last."""
        return self.loads["vllm"][1]


class _Server(demo_server.Server):
    """The demo's server with few slots, started so that its timelines are kept."""

    def __init__(self, model: Path, collector: str, log: Path, timelines: Path) -> None:
        super().__init__(model, collector, log)
        self._environment = _environment("vllm", self._environment, collector)
        python, _, _, *arguments = self._command
        self._command = [python, __file__, "vllm", str(timelines), *arguments, "--max-num-seqs", str(SEQUENCES)]


def record(folder: Path) -> LiveRun:
    """Run it all, files in ``folder``. Takes a minute or two."""
    began = time.time()
    model = tiny_model.build(folder / "model")
    files = {engine: folder / f"{engine}.jsonl" for engine in ("vllm", "transformers")}
    with Tape() as tape:
        server = _Server(model, tape.url, folder / "vllm.log", files["vllm"])
        server.start()
        try:
            # While the server loads.
            told = _process("transformers", [str(files["transformers"]), str(model)], tape.url)
            start, end = json.loads(told.splitlines()[-1])
            loads = {"transformers": (start, end)}
            asyncio.run(server.ready())
            _process("clients", [server.url, "warm-up"], tape.url)
            time.sleep(WINDOW_SECONDS + EXPORT_SECONDS)
            start = time.time()
            _process("clients", [server.url], tape.url)
            time.sleep(WINDOW_SECONDS + EXPORT_SECONDS)
            loads["vllm"] = start, time.time()
        finally:
            server.stop(grace=20)
    assert not tape.refused
    timelines = {engine: [json.loads(line) for line in path.read_text().splitlines()] for engine, path in files.items()}
    return LiveRun(tape, timelines, began, loads)


def _environment(role: str, base: dict[str, str], collector: str) -> dict[str, str]:
    kept = {name: value for name, value in base.items() if not name.startswith("OTEL_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OTEL_LLM_ENABLED": "1",
        "OTEL_LLM_SAMPLED_PER_SECOND": "inf",
        "OTEL_LLM_SLO_TTFT": str(TTFT_TARGET.get(role, "")),
        "OTEL_LLM_SLO_TPOT": str(TPOT_TARGET),
        "OTEL_LLM_STEP_DETAIL": "1",
        "OTEL_SERVICE_NAME": role,
        "OTEL_LLM_TIMING": "1",
        "OTEL_RESOURCE_ATTRIBUTES": f"otel_llm.run.id={RUN_ID}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRIC_EXPORT_INTERVAL": str(int(EXPORT_SECONDS * 1000)),
    }


def _process(role: str, arguments: Sequence[str], collector: str) -> str:
    """Run it to its end and return what it printed."""
    environment = _environment(role, dict(os.environ), collector)
    command = [sys.executable, __file__, role, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def keep_timelines(path: str) -> None:
    """Write the timeline of every request of this process to the file, a line each."""
    file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - it is written to until the process ends

    def sink(timeline: Timeline) -> None:
        file.write(json.dumps({name: getattr(timeline, name) for name in _KEPT}) + "\n")

    otel_llm.add_sink(sink)


def serve_vllm(timelines: str, *arguments: str) -> None:
    otel_llm.instrument()
    keep_timelines(timelines)
    sys.argv = ["api_server", *arguments]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def generate_with_transformers(timelines: str, model_folder: str) -> None:
    """Requests that all wait for the batch, more and more at once."""
    otel_llm.instrument()
    keep_timelines(timelines)
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    generation = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=256, block_size=32, max_batch_tokens=128, use_cuda_graph=False)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
    manager.start()
    numbers = itertools.count()

    def ask(wave: int) -> None:
        ids = {manager.add_request(list(range(10, 40 + next(numbers) % 30))) for _ in range(wave)}
        while ids:
            result = manager.get_result(timeout=30)
            assert result is not None, "no answer within 30 s"
            if result.is_finished():
                ids.discard(result.request_id)

    ask(1)
    time.sleep(WINDOW_SECONDS + EXPORT_SECONDS)
    start = time.time()
    for wave in WAVES:
        end = time.monotonic() + LEVEL_SECONDS / 2
        while time.monotonic() < end:
            ask(wave)
    time.sleep(WINDOW_SECONDS + EXPORT_SECONDS)
    sys.stdout.write(json.dumps((start, time.time())) + "\n")
    manager.stop(block=True, timeout=60)


async def call_the_server(url: str, warm_up: str = "") -> None:
    otel_llm.instrument()
    load = Load(url, demo_server.MODEL)
    if warm_up:
        await load.warm_up(WARM_UP)
        await _fail(url)
        return
    for concurrency in LEVELS:
        level = Level(concurrency)
        await load.run(level, LEVEL_SECONDS, lambda: None)
        assert not [exchange.error for exchange in level.exchanges if exchange.error]
    await _fail(url)


async def _fail(url: str) -> None:
    """A caller that asks for too much, and one that leaves in the middle of an answer, which a busy server may miss."""
    body = {"model": demo_server.MODEL, "prompt": "wait", "max_tokens": 500, "stream": True, "ignore_eos": True}
    url = f"{url}/v1/completions"
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json=body | {"prompt": [1] * 5000}) as refused:
            assert refused.status == 400, refused.status
        async with session.post(url, json=body) as answer:
            await answer.content.readline()


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "vllm":
        serve_vllm(*rest)
    elif role == "transformers":
        generate_with_transformers(*rest)
    else:
        asyncio.run(call_the_server(*rest))
        otel_llm.uninstrument()  # sends what is queued
