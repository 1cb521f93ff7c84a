"""
A FastAPI service that batches by itself: requests wait, are put together, and go through `generate` as one call.

    pip install fastapi uvicorn torch transformers "otel-llm[demo]"
    python examples/batching_fastapi.py

Twelve requests come at once, a batch holds four: watch the wait for a batch
become `queue`, and the rest of each request what it was. Only the service knows
when a request left its queue, so it says so: `mark.scheduled()`.
Or serve it: uvicorn --app-dir examples batching_fastapi:app
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

import otel_llm
from otel_llm.demo import tiny_model

if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
    os.environ |= {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
# A call of `generate` holds several requests here, and each of them is marked by hand: no engine is to count it again.
otel_llm.instrument(service_name="batching", engines=[])

LARGEST_BATCH = 4
PATIENCE = 0.01
"""Seconds that a batch waits for others to join."""


class Ask(BaseModel):
    prompt: str
    tokens: int = 16


@dataclass
class Job:
    """A request on its way through the batcher."""

    ids: list[int]
    tokens: int
    mark: otel_llm.request
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    answer: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Marks(BaseStreamer):
    """`generate` hands it the prompts first, then one token per row and step."""

    def __init__(self, batch: list[Job]) -> None:
        self.left: list[int] | None = None
        self.batch = batch

    def put(self, value: torch.Tensor) -> None:
        if self.left is None:
            self.left = [job.tokens for job in self.batch]
            return
        for row, job in enumerate(self.batch):
            if self.left[row] > 0:
                self.left[row] -= 1
                job.mark.tokens(1)

    def end(self) -> None:
        pass


class Batcher:
    """One thread that owns the model."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.waiting: queue.Queue[Job | None] = queue.Queue()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        while (job := self.waiting.get()) is not None:
            batch = [job]
            time.sleep(PATIENCE)
            while len(batch) < LARGEST_BATCH and not self.waiting.empty() and (more := self.waiting.get()):
                batch.append(more)
            for job in batch:
                job.mark.scheduled()
            for job, text in zip(batch, self.generate(batch), strict=True):
                job.loop.call_soon_threadsafe(job.answer.set_result, text)

    def generate(self, batch: list[Job]) -> list[str]:
        inputs = self.tokenizer.pad({"input_ids": [job.ids for job in batch]}, return_tensors="pt")
        longest = max(job.tokens for job in batch)
        output = self.model.generate(
            **inputs, min_new_tokens=longest, max_new_tokens=longest, do_sample=False, streamer=Marks(batch)
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [self.tokenizer.decode(row[: job.tokens]) for row, job in zip(new, batch, strict=True)]

    def stop(self) -> None:
        self.waiting.put(None)
        self.thread.join()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        app.state.batcher = Batcher(tiny_model.build(Path(folder) / "tiny"))
    yield
    app.state.batcher.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
async def generate(ask: Ask) -> dict[str, str]:
    batcher: Batcher = app.state.batcher
    ids = batcher.tokenizer(ask.prompt).input_ids
    with otel_llm.request(model="tiny", engine="transformers") as mark:
        mark.prompt(tokens=len(ids))
        job = Job(ids, ask.tokens, mark)
        batcher.waiting.put(job)
        return {"text": await job.answer}


def show(timeline: otel_llm.Timeline) -> None:
    parts = "  ".join(f"{phase.name} {phase.duration / 1e6:.1f}" for phase in timeline.phases())
    unaccounted = timeline.duration - sum(phase.duration for phase in timeline.phases())
    print(f"{timeline.prompt_tokens} + {timeline.output_tokens} tokens {timeline.duration / 1e6:.1f} ms = {parts}"
          f"  (unaccounted {unaccounted} ns)", flush=True)  # fmt: skip


def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = threading.Thread(target=server.run)
    serving.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask(number: int) -> Any:
        body = json.dumps({"prompt": "Tell me a story. " * (1 + number % 3), "tokens": 8 + number}).encode()
        call = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(call))

    reported = threading.Event()
    forget = otel_llm.add_sink(lambda _: reported.set())
    ask(0)  # the first call of a model takes longer than any other
    reported.wait()
    forget()
    otel_llm.add_sink(show)
    with ThreadPoolExecutor(12) as callers:
        list(callers.map(ask, range(12)))
    server.should_exit = True
    serving.join()


if __name__ == "__main__":
    main()
