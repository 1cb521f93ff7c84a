"""
What the state of the engine costs per step: ``python benchmarks/engine_cost.py``.

Thread CPU time of the hooks around functions that do nothing, less that of the
functions; the least of interleaved rounds. The batch is in decode, which is
what most steps are. Needs no vLLM: the objects have the fields that the hooks
read.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from pathlib import Path
from types import SimpleNamespace as Object
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

sys.path.insert(0, str(Path(__file__).parents[1]))

import otel_llm
from benchmarks.paired import sink
from otel_llm import faults, instrumentation
from otel_llm.engines import _vllm_state, _vllm_steps, _vllm_told
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Engine, Hook, Patcher

ROUNDS, CALLS = 40, 500


class Core:
    """Stands for vLLM's scheduler, its manager of stat loggers and its output processor."""

    vllm_config = Object(parallel_config=Object(data_parallel_index=0, data_parallel_rank=0))

    def __init__(self, batch: int) -> None:
        names = [str(number) for number in range(batch)]
        self.running = names
        self.scheduled = Object(
            total_num_scheduled_tokens=batch,
            num_scheduled_tokens=dict.fromkeys(names, 1),
            scheduled_new_reqs=[],
            scheduled_cached_reqs=Object(req_ids=names, num_output_tokens=[9] * batch),
            scheduled_spec_decode_tokens={},
        )
        self.output = Object(trace_headers=None)
        self.outputs = {0: Object(outputs=[self.output])}

    def schedule(self) -> Any:
        return self.scheduled

    def update_from_output(self, scheduler_output: Any) -> Any:
        self.output.trace_headers = None
        return self.outputs

    def record(self, scheduler_stats: Any, iteration_stats: Any, engine_idx: int = 0) -> None:
        """Does nothing."""

    def process_outputs(self, engine_core_outputs: Any) -> None:
        """Does nothing."""


def hooked(*, step_detail: bool) -> type[Core]:
    """A core with the hooks of vLLM in place."""

    class Hooked(Core):
        """Wrapped."""

    def hooks(probe: Any) -> tuple[Hook, ...]:
        rows = (*_vllm_steps.hooks(probe), *_vllm_told.hooks(probe), *_vllm_state.hooks(probe))
        names = [(row, row.targets[0].rpartition(".")[2]) for row in rows]
        return tuple(
            dataclasses.replace(row, targets=(f"{__name__}:{name}",)) for row, name in names if hasattr(Core, name)
        )

    engine = Engine("vllm", __name__, (), hooks)
    patcher = Patcher(engine, instrumentation.emit, _nothing, lambda: False, step_detail)
    for hook in engine.hooks(patcher.probe):
        name = hook.targets[0].partition(":")[2]
        patcher._wrap(hook, (Hooked, name, getattr(Core, name)))
    return Hooked


def _nothing(headers: Mapping[str, str] | None = None, carried: Context | None = None) -> None:
    """Captures no context."""


def least(actions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Microseconds of one call of each; what was told is recorded between the cases."""
    found = dict.fromkeys(actions, float("inf"))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            begin = time.thread_time_ns()
            for _ in range(CALLS):
                action()
            found[name] = min(found[name], (time.thread_time_ns() - begin) / CALLS / 1000)
            otel_llm.status()
    return found


def core_step(core: Core) -> Callable[[], None]:
    return lambda: core.update_from_output(core.schedule())


def frontend_step(core: Core) -> Callable[[], None]:
    outputs = [Object(trace_headers=None, events=None) for _ in range(64)]
    told = {_vllm_steps.STEPS: ";".join(["0", *["64 64 0 0.012345"] * _vllm_steps.STEPS_TOLD])}
    headers = itertools.cycle([told, *[None] * (_vllm_steps.STEPS_TOLD - 1)])
    cache = Object(queries=0, hits=0)
    scheduler = Object(
        num_running_reqs=64, num_waiting_reqs=2, kv_cache_usage=0.5, prefix_cache_stats=cache, spec_decoding_stats=None
    )
    iteration = Object(inter_token_latencies_iter=[], num_preempted_reqs=0)

    def step() -> None:
        outputs[0].trace_headers = next(headers)
        setattr(core, KEY, "m")
        core.process_outputs(outputs)
        setattr(core, KEY, Object(model="m", shared=None))
        core.record(scheduler, iteration, 0)

    return step


def frontend(hooks: type[Core]) -> float:
    """Microseconds per step of a batch of 64."""
    found = least({"without": frontend_step(Core(1)), "with": frontend_step(hooks(1))})
    return found["with"] - found["without"]


def main() -> None:
    """Print microseconds per step."""
    reader, rows = InMemoryMetricReader(), dict[str, float]()
    otel_llm.instrument(engines=["vllm"], meter_provider=MeterProvider([reader]))
    plain, detailed = hooked(step_detail=False), hooked(step_detail=True)
    actions = dict[str, Callable[[], None]]()
    for batch in (8, 64, 256):
        actions |= {f"core, batch of {batch}, without hooks": core_step(Core(batch))}
        actions |= {f"core, batch of {batch}": core_step(plain(batch))}
        actions |= {f"core, batch of {batch}, in detail": core_step(detailed(batch))}
    found = least(actions)
    for name, took in found.items():
        if "without" not in name:
            rows[name] = took - found[name.removesuffix(", in detail") + ", without hooks"]
    at_once = frontend(detailed)
    begin = time.thread_time_ns()
    reader.get_metrics_data()
    collected = (time.thread_time_ns() - begin) / ROUNDS / CALLS / 1000
    otel_llm.uninstrument()
    with sink() as url:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        otel_llm.instrument(engines=["vllm"])
        rows["frontend, which tells"] = frontend(hooked(step_detail=True))
        otel_llm.uninstrument()
    rows["frontend, providers of the application's own: recorded at once"] = at_once
    rows["collection, on the thread that exports"] = collected
    assert not faults.errors, faults.errors
    print("| per step of the engine | us |\n|---|---|")
    for name, took in rows.items():
        print(f"| {name} | {took:.1f} |")


if __name__ == "__main__":
    main()
