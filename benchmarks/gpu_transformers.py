"""
What otel-llm costs transformers on a GPU: ``python benchmarks/gpu_transformers.py``.

A random model of 1.2 billion parameters in bf16, nothing is downloaded. Decode
tokens per second, 100 % sampled against uninstrumented, interleaved; the
synchronisations with the device that PyTorch counts; and our prefill and decode
against CUDA events. It has not been run on CUDA by its authors: no figure of it
is in docs/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import BARE, Arms, cell, machine, rounds, sink
from benchmarks.transformers_overhead import classes
from benchmarks.vllm_overhead import OURS, otel_llm_arm, our_patches

PROMPT_TOKENS = 512


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--static-cache", action="store_true", help="static cache and torch.compile")
    chosen = options.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return 2
    with sink() as url:
        run(chosen, url, torch)
    return 0


def model_on(torch: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    torch.manual_seed(0)
    with torch.device("cuda"):
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=32_000, **shape, **heads)).to(torch.bfloat16).eval()


def run(chosen: argparse.Namespace, url: str, torch: Any) -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    from otel_llm.testing import recording

    model = model_on(torch)
    arms = Arms(classes())
    arms.add(OURS, otel_llm_arm(arms, {OURS: "1.0"}), our_patches)
    cache = {"cache_implementation": "static"} if chosen.static_cache else {}
    print(f"{torch.cuda.get_device_name()}; {machine('transformers', 'torch', 'opentelemetry-sdk')}")

    for batch in chosen.batch:
        prompt = torch.randint(0, 32_000, (batch, PROMPT_TOKENS), device="cuda")
        settings = {"min_new_tokens": chosen.tokens, "max_new_tokens": chosen.tokens, "do_sample": False, **cache}

        def generate(prompt: Any = prompt, settings: dict[str, Any] = settings) -> None:
            model.generate(prompt, **settings)
            torch.cuda.synchronize()

        def measure(name: str, batch: int = batch) -> Sequence[float]:
            begin = time.perf_counter()
            generate()
            rate = batch * chosen.tokens / (time.perf_counter() - begin)
            arms.flush[name]()
            return (rate,)

        found = rounds(arms, chosen.rounds, measure)
        bare, ours = ([rate for (rate,) in found[name].values()] for name in (BARE, OURS))
        lost = [(1 - with_it / without) * 100 for with_it, without in zip(ours, bare, strict=True)]
        print(f"batch {batch}: {BARE} {cell(bare)} tokens/s; lost {cell(lost, 2)} %, budget 0.5")
        syncs = {name: synchronisations(arms, name, generate, torch) for name in arms.names}
        print(f"  synchronisations counted by PyTorch: {syncs}")
        with arms.switched_on(OURS), recording() as timelines:
            prefill, decode = truth(model, generate, torch)
        phases = {phase.name: phase.duration / 1e6 for phase in timelines[-1].phases()}
        print(f"  prefill {phases.get('prefill', 0):.2f} ms, CUDA events {prefill:.2f} ms")
        print(f"  decode {phases.get('decode', 0):.2f} ms, CUDA events {decode:.2f} ms")


def synchronisations(arms: Arms, name: str, generate: Any, torch: Any) -> int:
    with arms.switched_on(name), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            generate()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def truth(model: Any, generate: Any, torch: Any) -> tuple[float, float]:
    """Milliseconds of prefill and decode between events around the model's passes."""
    events: list[Any] = []

    def mark(*_: Any, **__: Any) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        events.append(event)

    hooks = [
        model.register_forward_pre_hook(mark, with_kwargs=True),
        model.register_forward_hook(mark, with_kwargs=True),
    ]
    try:
        generate()
    finally:
        for hook in hooks:
            hook.remove()
    return events[0].elapsed_time(events[1]), events[1].elapsed_time(events[-1])


if __name__ == "__main__":
    sys.exit(main())
