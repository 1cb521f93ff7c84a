"""
A program: AsyncLLM with two engine cores whose processes are started by another executable.

Arguments: the model, the executable, and a file that takes what came of some requests, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline


async def ask_all(engine: Any, count: int) -> None:
    from vllm import SamplingParams

    async def ask(number: int) -> None:
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        async for _ in engine.generate(f"Request number {number} waits", params, f"r-{number}"):
            pass

    await asyncio.gather(*map(ask, range(count)))


async def run(model: str) -> tuple[list[Timeline], dict[str, Any]]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    options: dict[str, Any] = {"max_model_len": 256, "block_size": 32, "max_num_seqs": 4}
    options |= {"enforce_eager": True, "dtype": "float32"}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, data_parallel_size=2, **options))
    served: Counter[int] = Counter()
    record = engine.logger_manager.record

    def counted(scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> Any:
        index = kwargs.get("engine_idx", args[1] if len(args) > 1 else 0)
        if iteration_stats is not None:
            served[index] += len(iteration_stats.finished_requests)
        return record(scheduler_stats, iteration_stats, *args, **kwargs)

    engine.logger_manager.record = counted
    with recording() as seen:
        await ask_all(engine, 24)
    left = len(engine.output_processor.request_states)
    engine.shutdown()
    return seen, {"served": served, "left": left}


def by_engine(reader: InMemoryMetricReader) -> dict[str, dict[int, float]]:
    """What was said of each engine: the sums of histograms, and counters."""
    found: dict[str, dict[int, float]] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            index = (point.attributes or {}).get("otel_llm.engine.index")
            if isinstance(index, int):
                found.setdefault(metric.name, {})[index] = getattr(point, "value", getattr(point, "sum", 0))
    return found


def main(model: str, executable: str, result: str) -> None:
    multiprocessing.set_executable(executable)
    os.environ["OTEL_LLM_ENABLED"] = "1"  # in the cores, too
    reader = InMemoryMetricReader()
    otel_llm.instrument(engines=["vllm"], meter_provider=MeterProvider([reader]))
    seen, about = asyncio.run(run(model))
    about["engines"] = by_engine(reader)
    requests = []
    for timeline in seen:
        assert_adds_up(timeline)
        phases = {phase.name: phase.duration for phase in timeline.phases()}
        requests.append({"phases": phases, "attributes": dict(timeline.attributes)})
    Path(result).write_text(json.dumps([about, requests]))
    os._exit(0)  # the cores are gone or will be


if __name__ == "__main__":
    main(*sys.argv[1:])
