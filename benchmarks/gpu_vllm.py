"""
What otel-llm costs vLLM on a GPU, and how true it is: ``python benchmarks/gpu_vllm.py --model NAME [--truth]``.

Output tokens per second at saturation, everything on and 100 % sampled against
uninstrumented, in one process, interleaved, with vLLM's own defaults (CUDA
graphs, asynchronous scheduling). ``--truth`` holds our prefill and decode of
single requests to CUDA events around the model's steps instead, with the engine
core in this process. It has not been run on CUDA by its authors: no figure of
it is in docs/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
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
    options.add_argument("--truth", action="store_true", help="our phases against CUDA events")
    chosen = options.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return 2
    print(f"{torch.cuda.get_device_name()}; {machine('vllm', 'torch', 'opentelemetry-sdk')}")
    with sink() as url:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        if chosen.truth:
            truth(chosen.model, chosen.tokens, chosen.rounds, lambda: torch.cuda.Event(enable_timing=True))
        else:
            lost(chosen)
    return 0


def lost(chosen: argparse.Namespace) -> None:
    """Throughput at saturation, with and without."""
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
    share = [(1 - with_it / without) * 100 for with_it, without in zip(ours, bare, strict=True)]
    print(
        f"{chosen.model}, {chosen.requests} requests of {chosen.tokens} tokens, {chosen.rounds} rounds; median [95 %]"
    )
    print(f"  {BARE}: {cell(bare)} output tokens/s\n  {OURS}: {cell(ours)} output tokens/s")
    print(f"  lost: {cell(share, 2)} %   budget 0.5")


def truth(model: str, tokens: int, number: int, event: Callable[[], Any], **options: Any) -> None:
    """Our prefill and decode, and what passed on the device between the same steps; ``event`` makes one."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the steps are marked in this process
    import otel_llm
    from otel_llm.testing import recording

    otel_llm.instrument(engines=["vllm"])
    from vllm import LLM, SamplingParams

    llm: Any = LLM(model=model, enable_prefix_caching=False, **options)
    begins, ends = marked_steps(llm.collective_rpc(lambda worker: worker.model_runner)[0], event)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
    differs: dict[str, list[float]] = {"prefill": [], "decode": []}
    for count in range(-2, number):
        begins.clear()
        ends.clear()
        with recording() as timelines:
            llm.generate([f"{count} " + PROMPT * 60], params, use_tqdm=False)
        while not ends[-1].query():
            time.sleep(0.001)
        seen = {"prefill": begins[0].elapsed_time(ends[0]), "decode": ends[0].elapsed_time(ends[tokens - 1])}
        ours = {phase.name: phase.duration / 1e6 for phase in timelines[0].phases()}
        for phase, on_device in seen.items() if count >= 0 else ():
            differs[phase].append((ours[phase] / on_device - 1) * 100)
        last = {phase: f"{ours[phase]:.2f} ms, on the device {seen[phase]:.2f} ms" for phase in seen}
    for phase, percent in differs.items():
        print(f"  {phase}: {cell(percent, 2)} % longer than on the device (the last: {last[phase]})")


def marked_steps(runner: Any, event: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """Events at the begin of each step of the model and at its end, which is the sampling where that is a call."""
    begins: list[Any] = []
    ends: list[Any] = []

    def mark(place: list[Any] | None) -> None:
        if place is not None:
            place.append(made := event())
            made.record()

    def marking(name: str, before: list[Any] | None, after: list[Any] | None) -> None:
        original = getattr(runner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            mark(before)
            value = original(*args, **kwargs)
            mark(after)
            return value

        setattr(runner, name, marked)

    apart = hasattr(runner, "sample_tokens")
    marking("execute_model", begins, None if apart else ends)
    if apart:
        marking("sample_tokens", None, ends)
    return begins, ends


if __name__ == "__main__":
    sys.exit(main())
