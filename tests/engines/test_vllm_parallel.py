"""
A real vLLM in which more than one thing happens at a time: steps that overlap, and two workers.

- async: the next step is scheduled before the outputs of the one before are there, the default on a GPU. vLLM's
  platform for the CPU takes that back, as not required, so that the test gives it once more.
- pipeline: two stages, each a process, with a batch for each of them under way.
- tensor: two halves of the model, each a process.

The core is in this process, where the test reads its scheduler with a clock of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from tests.engines import slow
from tests.engines.test_vllm_state import Metrics, Truth, run, submit, watched

pytestmark = pytest.mark.vllm
SECONDS = 0.04
DURATION = "otel_llm.engine.step.duration"
COUNTS = (
    "otel_llm.engine.batch.size",
    "otel_llm.engine.step.tokens",
    "otel_llm.engine.computed_tokens prefill",
    "otel_llm.engine.computed_tokens decode",
)
TWO_WORKERS = {"distributed_executor_backend": "mp", "worker_extension_cls": slow.WORKER}
OPTIONS: dict[str, dict[str, Any]] = {
    "async": {"async_scheduling": True},
    "pipeline": {**TWO_WORKERS, "pipeline_parallel_size": 2},
    "tensor": {**TWO_WORKERS, "tensor_parallel_size": 2},
}


@dataclass
class Parallel:
    """An engine, what is said of it, and how its model is slowed down."""

    kind: str
    llm_engine: Any
    metrics: Metrics

    @contextmanager
    def slow_model(self) -> Iterator[slow.Times]:
        """In every process that has a part of it; what is given is filled at the end."""
        if self.kind == "async":
            with slow.slowed(self.llm_engine.engine_core.engine_core.model_executor, "execute_model", SECONDS) as times:
                yield times
            return
        times = []
        self.llm_engine.collective_rpc("slow_down", args=("model_runner", "execute_model", SECONDS))
        try:
            yield times
        finally:
            for found in self.llm_engine.collective_rpc("speed_up"):
                times.extend(found)


@pytest.fixture(scope="module", params=list(OPTIONS))
def parallel(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Parallel]:
    patch, metrics = pytest.MonkeyPatch(), Metrics()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else each worker asks for a NUMA node of its own
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("OTEL_LLM_STEP_DETAIL", "1")
    otel_llm.instrument(engines=["vllm"], meter_provider=metrics.provider)
    from vllm import LLM, envs
    from vllm.platforms.cpu import CpuPlatform

    envs.disable_envs_cache()  # which an engine of before has made
    check = CpuPlatform.check_and_update_config

    def as_asked(config: Any) -> None:
        asked = config.scheduler_config.async_scheduling
        check(config)
        config.scheduler_config.async_scheduling = asked

    if request.param == "async":
        patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(as_asked))
    options = {"max_model_len": 512, "block_size": 32, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    options |= {"enforce_eager": True, "dtype": "float32", "served_model_name": "tiny", **OPTIONS[request.param]}
    llm = LLM(str(tiny_model), **options)
    if request.param == "pipeline":
        # The second stage takes its input in what a warm-up makes; without compilation the CPU has none.
        llm.collective_rpc("execute_dummy_batch")
    yield Parallel(request.param, llm.llm_engine, metrics)
    llm.llm_engine.engine_core.shutdown()
    patch.undo()
    envs.disable_envs_cache()
    otel_llm.uninstrument()


def union(spans: list[tuple[float, float]]) -> float:
    """Time in which there was at least one."""
    total = reached = 0.0
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    return total


def told(metrics: Metrics) -> list[float]:
    return [metrics.steps(), *map(metrics.value, COUNTS)]


def of(truth: Truth) -> list[float]:
    tokens = sum(truth.tokens)
    return [len(truth.batches), sum(truth.batches), tokens, truth.prefill, tokens - truth.prefill]


def test_steps_are_counted_once_and_their_time_is_that_in_which_the_engine_was_busy(parallel: Parallel) -> None:
    metrics, requests, tokens = parallel.metrics, 6, 12
    before, took = told(metrics), metrics.value(DURATION)
    with parallel.slow_model() as executed, watched(parallel.llm_engine) as truth, recording() as seen:
        submit(parallel.llm_engine, requests, tokens)
        run(parallel.llm_engine)
    assert [after - value for after, value in zip(told(metrics), before, strict=True)] == of(truth)
    took = metrics.value(DURATION) - took
    busy, executing = union(truth.spans), union(executed) / 1e9
    assert SECONDS * len(truth.spans) <= executing <= took + SECONDS, "an empty batch may follow the last step"
    assert took == pytest.approx(busy, abs=executing / 10)
    naive = sum(end - begin for begin, end in truth.spans)
    assert naive == pytest.approx(busy) if parallel.kind == "tensor" else naive > 1.3 * busy, "do they overlap?"
    assert [request.output_tokens for request in seen] == [tokens] * requests
    for request in seen:
        assert_adds_up(request)


def test_a_delay_of_the_model_is_prefill_and_decode(parallel: Parallel) -> None:
    with parallel.slow_model(), watched(parallel.llm_engine) as truth, recording() as seen:
        submit(parallel.llm_engine, 1, tokens=8)
        run(parallel.llm_engine)
    (request,) = seen
    assert_adds_up(request)
    phases = {phase.name: phase.duration / 1e9 for phase in request.phases()}
    assert list(phases) == ["preprocess", "queue", "prefill", "decode", "postprocess"]
    began, first = truth.spans[0]
    assert phases["prefill"] == pytest.approx(first - began, abs=SECONDS)
    assert phases["decode"] == pytest.approx(truth.spans[-1][1] - first, abs=SECONDS)
    stages = 2 if parallel.kind == "pipeline" else 1
    assert phases["prefill"] >= SECONDS * stages
    assert phases["decode"] >= SECONDS * stages * 6, "asynchronously one of the seven is executed in prefill"


def test_a_pause_is_no_step(parallel: Parallel) -> None:
    """Asynchronously a step is under way when a request stops; here it is looked at when the next request comes."""
    from vllm import SamplingParams

    def ask(**stop: Any) -> list[int]:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=6, **stop)
        parallel.llm_engine.add_request(str(time.monotonic_ns()), "A request waits in the queue", params)
        while parallel.llm_engine.has_unfinished_requests():
            for output in parallel.llm_engine.step():
                ids = list(output.outputs[0].token_ids)
        return ids

    whole, took = ask(), parallel.metrics.value(DURATION)
    with slow.slowed(parallel.llm_engine, "step", 0.0) as stepped:
        assert ask(stop_token_ids=[whole[1]]) == whole[:2]
        time.sleep(1)
        assert ask() == whole
    took = parallel.metrics.value(DURATION) - took
    assert 0 < took <= union(stepped) / 1e9 + 0.1
