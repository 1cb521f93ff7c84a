"""
What otel-llm costs vLLM on a GPU: ``python benchmarks/gpu_vllm.py --model Qwen/Qwen2.5-1.5B-Instruct``.

Output tokens per second at saturation, everything on and 100 % sampled against
uninstrumented, in one process, interleaved, with vLLM's own defaults (CUDA
graphs, asynchronous scheduling). It has not been run on CUDA by its authors: no
figure of it is in docs/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import BARE, Arms, cell, machine, rounds, sink
from benchmarks.vllm_overhead import OURS, classes, otel_llm_arm, our_patches

PROMPT = "Explain where the time of a request goes."


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", required=True, help="any that this vLLM can load")
    options.add_argument("--requests", type=int, default=512, help="at once: enough to fill the batch")
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--rounds", type=int, default=20)
    chosen = options.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return 2
    with sink() as url:
        run(chosen, url, torch.cuda.get_device_name())
    return 0


def run(chosen: argparse.Namespace, url: str, device: str) -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    from vllm import LLM, SamplingParams

    arms = Arms(classes())
    arms.add(OURS, otel_llm_arm(arms, {OURS: "1.0"}), our_patches)
    with arms.switched_on(OURS):
        llm: Any = LLM(model=chosen.model, disable_log_stats=False, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=chosen.tokens, ignore_eos=True, temperature=0)

    def measure(name: str) -> Sequence[float]:
        begin = time.perf_counter()
        llm.generate([PROMPT] * chosen.requests, params, use_tqdm=False)
        rate = chosen.requests * chosen.tokens / (time.perf_counter() - begin)
        arms.flush[name]()
        return (rate,)

    found = rounds(arms, chosen.rounds, measure)
    bare, ours = ([rate for (rate,) in found[name].values()] for name in (BARE, OURS))
    lost = [(1 - with_it / without) * 100 for with_it, without in zip(ours, bare, strict=True)]
    print(f"{device}; {machine('vllm', 'torch', 'opentelemetry-sdk')}")
    print(
        f"{chosen.model}, {chosen.requests} requests of {chosen.tokens} tokens, {chosen.rounds} rounds; median [95 %]"
    )
    print(f"  {BARE}: {cell(bare)} output tokens/s\n  {OURS}: {cell(ours)} output tokens/s")
    print(f"  lost: {cell(lost, 2)} %   budget 0.5")


if __name__ == "__main__":
    sys.exit(main())
