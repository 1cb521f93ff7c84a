"""
vLLM without a server: which part of a batch's time was waiting?

    python examples/offline_vllm.py [MODEL]

Without a model, a tiny random one is built. The batch is larger than vLLM may
run at once, so later requests show a queue.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter

import otel_llm

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main() -> None:
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        os.environ |= {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    otel_llm.instrument(service_name="offline-batch", engines=["vllm"])
    timelines: list[otel_llm.Timeline] = []
    otel_llm.add_sink(timelines.append)

    from vllm import LLM, SamplingParams

    if len(sys.argv) > 1:
        model, dtype = sys.argv[1], "auto"
    else:
        from otel_llm.demo import tiny_model

        model, dtype = str(tiny_model.build(os.path.join(tempfile.gettempdir(), "otel-llm-tiny"))), "float32"
    llm = LLM(model=model, max_num_seqs=4, max_model_len=512, enforce_eager=True, dtype=dtype)
    prompts = [f"Question {number}: what takes so long?" for number in range(12)]
    llm.generate(prompts, SamplingParams(max_tokens=24, ignore_eos=True))

    total: Counter[str] = Counter()
    for timeline in timelines:
        for phase in timeline.phases():
            total[phase.name] += phase.duration
    everything = sum(timeline.duration for timeline in timelines)
    print(f"\n{len(timelines)} requests, {everything / 1e9:.2f} request-seconds:")
    for name, duration in total.items():
        print(f"  {name:<12} {duration / 1e9:7.3f} s  {duration / everything:6.1%}")
    print(f"  {'unaccounted':<12} {(everything - sum(total.values())) / 1e9:7.3f} s")


if __name__ == "__main__":
    main()
