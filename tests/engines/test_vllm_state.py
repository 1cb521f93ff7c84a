"""
The state and the steps of a real vLLM engine, its core in this process.

What the state is held to is vLLM's own Prometheus page, after every step of
the same run. What the steps are held to is the scheduler itself, read by the
test with its own clock. The KV cache is small enough to preempt, prompts are
prefilled in chunks, and n-grams are drafted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import otel_llm
from otel_llm import instrumentation
from otel_llm.engine_state import Emission
from otel_llm.engines import _vllm_steps, _vllm_told
from tests.engines import vllm_live

pytestmark = pytest.mark.vllm

LABELS = {"gen_ai.provider.name": "vllm", "gen_ai.request.model": "tiny", "otel_llm.engine.index": 0}
SAME = {
    "otel_llm.engine.requests running": "vllm:num_requests_running",
    "otel_llm.engine.requests waiting": "vllm:num_requests_waiting",
    "otel_llm.engine.kv_cache.usage": "vllm:kv_cache_usage_perc",
    "otel_llm.engine.prefix_cache.queries": "vllm:prefix_cache_queries_total",
    "otel_llm.engine.prefix_cache.hits": "vllm:prefix_cache_hits_total",
    "otel_llm.engine.preemptions": "vllm:num_preemptions_total",
    "otel_llm.engine.speculation.drafted": "vllm:spec_decode_num_draft_tokens_total",
    "otel_llm.engine.speculation.accepted": "vllm:spec_decode_num_accepted_tokens_total",
}
"""Ours and vLLM's own of the same meaning."""


class Metrics:
    """What otel-llm says, through a provider of the application's."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def read(self) -> dict[str, Any]:
        """The engine's points by name; by name and state or phase where there are several."""
        found = {}
        data = self.reader.get_metrics_data()
        assert data is not None
        for scope in data.resource_metrics[0].scope_metrics:
            for metric in scope.metrics:
                if not metric.name.startswith("otel_llm.engine."):
                    continue
                for point in metric.data.data_points:
                    labels = dict(point.attributes or {})
                    labels.pop("otel_llm.engine.id", None)
                    which = [labels.pop(key) for key in ("otel_llm.state", "otel_llm.phase") if key in labels]
                    assert labels == LABELS
                    found[" ".join((metric.name, *map(str, which)))] = point
        return found

    def value(self, name: str) -> float:
        """Of a gauge, a counter, or the sum of a histogram; 0 before the first."""
        point = self.read().get(name)
        return 0 if point is None else getattr(point, "value", getattr(point, "sum", 0))

    def steps(self) -> int:
        """Steps counted so far."""
        point = self.read().get("otel_llm.engine.batch.size")
        return 0 if point is None else int(point.count)


def page() -> dict[str, float]:
    """VLLM's own page: totals over all labels but the model's and the engine's."""
    from prometheus_client import REGISTRY

    samples: dict[str, float] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name.startswith("vllm:") and not sample.name.endswith(("_bucket", "_created")):
                samples[sample.name] = samples.get(sample.name, 0) + sample.value
    return samples


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[tuple[Any, Metrics]]:
    patch, metrics = pytest.MonkeyPatch(), Metrics()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    patch.setenv("OTEL_LLM_STEP_DETAIL", "1")
    otel_llm.instrument(engines=["vllm"], meter_provider=metrics.provider)
    from vllm import LLM, __version__

    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    llm = LLM(
        model=str(tiny_model),
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        served_model_name="tiny",
        num_gpu_blocks_override=20,
        block_size=32,
        max_num_batched_tokens=128,
        max_num_seqs=16,
        # 0.30 has its rejection sampler in Triton alone, which the CPU build lacks.
        speculative_config=None if __version__.startswith("0.30.") else ngram,
    )
    yield llm.llm_engine, metrics
    patch.undo()
    otel_llm.uninstrument()


@dataclass
class Truth:
    """The steps by the scheduler and by the test's clock."""

    batches: list[int]
    tokens: list[int]
    prefill: int
    spans: list[tuple[float, float]]

    @property
    def busy(self) -> float:
        """Time in which a step ran."""
        return sum(end - begin for begin, end in self.spans)


@contextmanager
def watched(llm_engine: Any) -> Iterator[Truth]:
    scheduler = llm_engine.engine_core.engine_core.scheduler
    truth, begun = Truth([], [], 0, []), {}
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def scheduling(*args: Any, **kwargs: Any) -> Any:
        at = time.perf_counter()
        output = schedule(*args, **kwargs)
        begun[id(output)] = at
        for name, count in output.num_scheduled_tokens.items():
            request = scheduler.requests[name]
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            # Known tokens of which more than the last is computed: a prompt, or what a preempted one had.
            if request.num_output_tokens + request.num_output_placeholders == 0 or count > 1 + drafts:
                truth.prefill += count
        return output

    def updating(output: Any, *args: Any, **kwargs: Any) -> Any:
        result = update(output, *args, **kwargs)
        if output.total_num_scheduled_tokens:
            truth.spans.append((begun.pop(id(output)), time.perf_counter()))
            truth.batches.append(len(output.num_scheduled_tokens))
            truth.tokens.append(sum(output.num_scheduled_tokens.values()))
        return result

    scheduler.schedule, scheduler.update_from_output = scheduling, updating
    try:
        yield truth
    finally:
        del scheduler.schedule, scheduler.update_from_output


def submit(llm_engine: Any, count: int, tokens: int = 30) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens)
    for number in range(count):
        words = vllm_live.prompt(10 + 5 * number)
        llm_engine.add_request(f"{time.monotonic_ns()}-{number}", words, params)


def run(llm_engine: Any) -> None:
    while llm_engine.has_unfinished_requests():
        llm_engine.step()


def test_nothing_is_said_before_it_is_known(engine: tuple[Any, Metrics]) -> None:
    assert engine[1].read() == {}


def test_the_state_equals_vllms_own_page_after_every_step(engine: tuple[Any, Metrics]) -> None:
    llm_engine, metrics = engine
    submit(llm_engine, 12)
    speculates = llm_engine.vllm_config.speculative_config is not None
    same = {name: own for name, own in SAME.items() if speculates or "speculation" not in name}
    highest = dict.fromkeys(same, 0.0)
    while llm_engine.has_unfinished_requests():
        llm_engine.step()
        ours, theirs = metrics.read(), page()
        for name, own in same.items():
            value = ours[name].value if name in ours else None
            assert value == theirs[own] or (value is None and theirs[own] == 0), name
            highest[name] = max(highest[name], value or 0)
    assert all(highest.values()), f"some of it never happened: {highest}"
    assert metrics.value("otel_llm.engine.requests running") == 0


def test_what_a_step_said_is_the_same_when_it_is_recorded_later(
    engine: tuple[Any, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a pipeline of our own: vLLM does not go on with what it has told."""
    llm_engine, metrics = engine
    live = instrumentation._live.get()
    told: list[Emission] = []
    before = {name: metrics.value(name) for name in SAME}
    monkeypatch.setattr(live, "take", told.append)
    submit(llm_engine, 12)
    run(llm_engine)
    assert {name: metrics.value(name) for name in SAME} == before
    for said in told:
        live.recorder.record(said)
    ours, theirs = metrics.read(), page()
    assert {name: ours[name].value for name in ours if name in SAME} == {
        name: theirs[own] for name, own in SAME.items() if name in ours
    }


def test_the_steps_equal_the_schedulers(engine: tuple[Any, Metrics]) -> None:
    llm_engine, metrics = engine
    phases = [f"otel_llm.engine.computed_tokens {phase}" for phase in ("prefill", "decode")]
    names = ("otel_llm.engine.batch.size", "otel_llm.engine.step.tokens", *phases)
    before, steps, own = {name: metrics.value(name) for name in names}, metrics.steps(), page()
    submit(llm_engine, 12)
    with watched(llm_engine) as truth:
        run(llm_engine)
    found = [metrics.value(name) - before[name] for name in names]
    assert metrics.steps() - steps == len(truth.batches)
    assert found == [sum(truth.batches), sum(truth.tokens), truth.prefill, sum(truth.tokens) - truth.prefill]
    assert max(truth.tokens) <= 128
    # vLLM's own figure has neither what was computed again, nor drafts that were refused, nor each chunk by itself.
    count, total = (f"vllm:iteration_tokens_total_{part}" for part in ("count", "sum"))
    assert page()[total] - own[total] < sum(truth.tokens)
    assert page()[count] - own[count] <= len(truth.tokens)


def test_a_delay_in_the_model_is_in_the_steps_duration(engine: tuple[Any, Metrics]) -> None:
    llm_engine, metrics = engine
    executor = llm_engine.engine_core.engine_core.model_executor
    execute, slept = executor.execute_model, 0.0

    def slowly(*args: Any, **kwargs: Any) -> Any:
        nonlocal slept
        begin = time.perf_counter()
        time.sleep(0.05)
        slept += time.perf_counter() - begin
        return execute(*args, **kwargs)

    before = metrics.value("otel_llm.engine.step.duration")
    submit(llm_engine, 2, tokens=8)
    executor.execute_model = slowly
    try:
        with watched(llm_engine) as truth:
            run(llm_engine)
    finally:
        del executor.execute_model
    took = metrics.value("otel_llm.engine.step.duration") - before
    assert slept >= 0.05 * len(truth.spans) > 0.1
    assert slept <= took
    assert took == pytest.approx(truth.busy, abs=slept / 10)


def test_sleep_is_told_once_it_happened(engine: tuple[Any, Metrics]) -> None:
    llm_engine, metrics = engine
    assert "otel_llm.engine.sleep_level" not in metrics.read()
    for level in (1, 2):
        llm_engine.logger_manager.record_sleep_state(1, level)
        assert metrics.value("otel_llm.engine.sleep_level") == level
    llm_engine.logger_manager.record_sleep_state(0, 0)
    assert metrics.read()["otel_llm.engine.sleep_level"].value == 0


@pytest.mark.expects_faults
@pytest.mark.parametrize(
    ("module", "name", "place"),
    [
        (_vllm_steps, "prefill_tokens", "vllm.Scheduler.update_from_output"),
        (_vllm_told, "note", "vllm.OutputProcessor.process_outputs"),
    ],
)
def test_an_error_in_what_is_said_of_steps_changes_no_answer(
    engine: tuple[Any, Metrics],
    module: Any,
    name: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    no_hidden_error: list[tuple[str, Exception]],
) -> None:
    """Seen to fail with the handlers of errors in _vllm_steps.hooks and _vllm_told.hooks taken out."""
    from vllm import SamplingParams

    def fail(*_: Any) -> int:
        raise RuntimeError("ours")

    llm_engine, _ = engine

    def answers() -> list[str]:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=6)
        llm_engine.add_request(str(time.monotonic_ns()), vllm_live.prompt(9), params)
        texts = []
        while llm_engine.has_unfinished_requests():
            texts += [output.outputs[0].text for output in llm_engine.step() if output.finished]
        return texts

    healthy = answers()
    monkeypatch.setattr(module, name, fail)
    assert answers() == healthy
    assert {where for where, _ in no_hidden_error} == {place}


def test_without_the_switch_batches_are_counted_and_nothing_is_timed(
    engine: tuple[Any, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm_engine, detailed = engine
    otel_llm.uninstrument()
    monkeypatch.delenv("OTEL_LLM_STEP_DETAIL")
    plain = Metrics()
    otel_llm.instrument(engines=["vllm"], meter_provider=plain.provider)
    submit(llm_engine, 3)
    with watched(llm_engine) as truth:
        run(llm_engine)
    assert plain.value("otel_llm.engine.batch.size") == sum(truth.batches)
    assert plain.value("otel_llm.engine.step.tokens") == sum(truth.tokens)
    assert not [name for name in plain.read() if "duration" in name or "computed" in name]
    otel_llm.uninstrument()
    monkeypatch.setenv("OTEL_LLM_STEP_DETAIL", "1")
    otel_llm.instrument(engines=["vllm"], meter_provider=detailed.provider)
