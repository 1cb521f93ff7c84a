"""
What instrumentations cost a transformers pipeline: ``python benchmarks/transformers_overhead.py [--peers FOLDER]``.

CPU per call of a text-generation pipeline and per output token, on the calling
thread, with a tiny model on one thread of torch. The two workloads differ in
their number of tokens only. Peers are those of ``benchmarks/peers.sh``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import BARE, Arms, calm, cell, machine, pairs, rounds, with_peers
from benchmarks.vllm_overhead import (
    EMPTY,
    OURS,
    OURS_1,
    empty_patches,
    nothing,
    openlit,
    otel_llm_arm,
    our_patches,
)

FEW, MANY = 1, 16
TIMES = {FEW: 8, MANY: 3}
"""Calls in a row, of which the least disturbed counts: the machine's other work only ever makes one longer."""
PROMPT = "A request waits in the queue"


def classes() -> Sequence[Any]:
    """What the others wrap things of."""
    from transformers import TextGenerationPipeline

    return [TextGenerationPipeline]


def openllmetry() -> Callable[[], object]:
    from opentelemetry import trace
    from opentelemetry.instrumentation.transformers import TransformersInstrumentor

    provider: Any = trace.get_tracer_provider()
    TransformersInstrumentor().instrument(tracer_provider=provider)
    return lambda: provider.force_flush()


def run(url: str, number: int) -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    import torch
    import transformers
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from otel_llm.demo.tiny_model import build

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = str(build(Path(tempfile.gettempdir()) / "otel-llm-bench-model"))
    pipe: Any = transformers.pipeline("text-generation", model=model)

    arms = Arms(classes())
    arms.add(OURS, otel_llm_arm(arms, {OURS: "1.0", OURS_1: "0.01"}), our_patches)
    arms.alias(OURS_1, OURS)
    arms.add(EMPTY, nothing, empty_patches)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    arms.add("OpenLLMetry", openllmetry)
    arms.add("OpenLIT", openlit(url, "transformers", "transformers"))

    def call(tokens: int) -> float:
        thread = time.thread_time()
        pipe(PROMPT, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return time.thread_time() - thread

    def measure(name: str) -> Sequence[float]:
        call(FEW)  # after whatever the arm before it has sent
        times = [min(call(tokens) for _ in range(count)) * 1e6 for tokens, count in TIMES.items()]
        arms.flush[name]()
        return times

    found = rounds(arms, number, measure, {"OpenLLMetry": 20, "OpenLIT": 4})
    print(
        machine("transformers", "torch", "opentelemetry-sdk", "openlit", "opentelemetry-instrumentation-transformers")
    )
    shapes = " and ".join(f"{count} calls of {tokens}" for tokens, count in TIMES.items())
    print(f"{number} rounds of {shapes} tokens, of which the shortest counts; microseconds on the calling thread,")
    print("median and calmest tenth of the rounds, each with its 95 % interval")
    figures: dict[str, Callable[[Sequence[float]], float]] = {
        f"per call of {FEW} token": lambda times: times[0],
        "per further token": lambda times: (times[1] - times[0]) / (MANY - FEW),
    }
    for title, figure in figures.items():
        print(f"\n{title}; without any it takes {cell([figure(times) for times in found[BARE].values()])}")
        for name in arms.names:
            if name != BARE:
                both = pairs(found, name)
                middle = cell([figure(ours) - figure(base) for ours, base in both])
                print(f"  {name:26}{len(both):>6} rounds{middle:>30}{calm(both, figure):>30}")
    for name, reason in arms.missing.items():
        print(f"{name}: not run here ({reason})")


if __name__ == "__main__":
    with_peers(run, __doc__, 200)
