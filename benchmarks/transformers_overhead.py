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

from benchmarks.paired import Arms, machine, rounds, show, with_peers
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
CALL_ROUNDS = 10
"""Rounds of single tokens for each that has more too: they are short, and what they differ by is small."""
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

    def shortest(tokens: int) -> float:
        return min(call(tokens) for _ in range(TIMES[tokens])) * 1e6

    def of_calls(_name: str) -> Sequence[float]:
        call(FEW)  # the first of an arm finds another's in the caches
        return [shortest(FEW)]

    def of_tokens(name: str) -> Sequence[float]:
        call(FEW)
        times = [shortest(tokens) for tokens in TIMES]
        arms.flush[name]()
        return times

    many = number * CALL_ROUNDS
    calls = rounds(arms, many, of_calls, {"OpenLLMetry": 20 * CALL_ROUNDS, "OpenLIT": 4 * CALL_ROUNDS})
    tokens = rounds(arms, number, of_tokens, {"OpenLLMetry": 20, "OpenLIT": 4})
    print(
        machine("transformers", "torch", "opentelemetry-sdk", "openlit", "opentelemetry-instrumentation-transformers")
    )
    print(
        f"{many} rounds of {TIMES[FEW]} calls of {FEW} token, {number} that have {TIMES[MANY]} of {MANY} too, of which"
    )
    print(
        "the shortest counts; microseconds on the calling thread, median, calmest tenth and least of the rounds, each"
    )
    print("with its 95 % interval")
    show(calls, f"per call of {FEW} token", lambda times: times[0])
    show(tokens, "per further token", lambda times: (times[1] - times[0]) / (MANY - FEW))
    for name, reason in arms.missing.items():
        print(f"{name}: not run here ({reason})")


if __name__ == "__main__":
    with_peers(run, __doc__, 200)
