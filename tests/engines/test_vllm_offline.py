"""
Real vLLM offline, with the engine core in this process: known delays land in their phase.

The delays are injected into the scheduler and the model's execution, and the
time that they really took is what the phases are held to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.engines.vllm import ENGINE
from otel_llm.patching import Patcher
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline
from tests.engines import vllm_live

pytestmark = pytest.mark.vllm
MS = 1_000_000


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Any]:
    otel_llm.instrument(engines=["vllm"])
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    yield LLM(
        model=str(tiny_model),
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        served_model_name="tiny",
        enable_prefix_caching=False,
    )
    patch.undo()
    otel_llm.uninstrument()


@pytest.fixture
def seen(llm: Any) -> Iterator[list[Timeline]]:
    with recording() as timelines:
        yield timelines
    for timeline in timelines:
        assert_adds_up(timeline)
    assert not llm.llm_engine.output_processor.request_states


class Delay:
    """Sleeps before chosen calls of a function and notes how long that really took."""

    def __init__(self, seconds: float, calls: range) -> None:
        self.seconds, self.calls = seconds, calls
        self.count = 0
        self.took = 0

    def __call__(self) -> None:
        if self.count in self.calls:
            begin = time.monotonic_ns()
            time.sleep(self.seconds)
            self.took += time.monotonic_ns() - begin
        self.count += 1


@contextmanager
def wrapped(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    original = getattr(owner, name)

    def around(*args: Any, **kwargs: Any) -> Any:
        before()
        result = original(*args, **kwargs)
        after()
        return result

    setattr(owner, name, around)
    try:
        yield
    finally:
        setattr(owner, name, original)


class Truth:
    """The engine's own steps by the test's clock, whatever the speed of the machine."""

    def __init__(self) -> None:
        self.scheduled: list[int] = []
        self.updated: list[int] = []

    @contextmanager
    def watch(self, llm: Any) -> Iterator[None]:
        scheduler = core(llm).scheduler

        def entered() -> None:
            self.scheduled.append(time.monotonic_ns())

        def left() -> None:
            self.updated.append(time.monotonic_ns())

        with wrapped(scheduler, "schedule", entered, nothing), wrapped(scheduler, "update_from_output", nothing, left):
            yield

    def phases(self, submitted: int) -> dict[str, int]:
        first, last = self.updated[0], self.updated[-1]
        scheduled = self.scheduled[0]
        return {"queue": scheduled - submitted, "prefill": first - scheduled, "decode": last - first}


def nothing() -> None:
    """The other side of a wrapped function."""


def core(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core


def params(**sampling: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 6, **sampling})


def phases(timeline: Timeline) -> dict[str, int]:
    return {phase.name: phase.duration for phase in timeline.phases()}


def generate(llm: Any, seen: list[Timeline], words: int = 8, **sampling: Any) -> dict[str, int]:
    llm.generate([vllm_live.prompt(words)], params(**sampling), use_tqdm=False)
    return phases(seen[-1])


@pytest.mark.parametrize(
    ("owner", "method", "calls", "phase"),
    [
        ("scheduler", "schedule", range(1), "queue"),
        ("model_executor", "execute_model", range(1), "prefill"),
        ("model_executor", "execute_model", range(1, 6), "decode"),
    ],
)
def test_an_injected_delay_lands_in_its_phase(
    llm: Any, seen: list[Timeline], owner: str, method: str, calls: range, phase: str
) -> None:
    delay, truth = Delay(0.5 / len(calls), calls), Truth()
    with truth.watch(llm), wrapped(getattr(core(llm), owner), method, delay, nothing):
        found = generate(llm, seen)
    assert delay.took >= 500 * MS
    assert found[phase] >= delay.took
    assert seen[-1].submitted is not None
    for name, expected in truth.phases(seen[-1].submitted).items():
        assert abs(found[name] - expected) <= delay.took / 10, (name, expected, found)


def test_chunked_prefill_is_one_prefill(llm: Any, seen: list[Timeline]) -> None:
    scheduler = core(llm).scheduler
    budget = scheduler.max_num_scheduled_tokens
    delay, truth = Delay(0.1, range(3)), Truth()
    scheduler.max_num_scheduled_tokens = 64
    try:
        with truth.watch(llm), wrapped(core(llm).model_executor, "execute_model", delay, nothing):
            found = generate(llm, seen, words=75, max_tokens=1)
    finally:
        scheduler.max_num_scheduled_tokens = budget
    assert seen[-1].prompt_tokens is not None
    assert 128 < seen[-1].prompt_tokens <= 192, "three chunks"
    assert delay.count == 3
    assert delay.took <= found["prefill"]
    assert abs(found["prefill"] - (truth.updated[2] - truth.scheduled[0])) <= delay.took / 10


def test_the_stall_of_a_preempted_request(llm: Any, seen: list[Timeline]) -> None:
    engine = llm.llm_engine
    engine.add_request("mine", vllm_live.prompt(6), params(max_tokens=8))
    for _ in range(3):
        engine.step()
    began = time.monotonic_ns()
    core(llm).scheduler.reset_prefix_cache(reset_running_requests=True)  # takes what is running out of the batch
    taken = time.monotonic_ns()
    time.sleep(0.3)
    before = time.monotonic_ns()
    engine.step()
    after = time.monotonic_ns()
    while engine.has_unfinished_requests():
        engine.step()
    (request,) = seen
    assert (request.preemptions, request.output_tokens) == (1, 8)
    assert before - taken <= request.preemption_stall <= after - began
    assert request.preemption_stall < phases(request)["decode"]


def test_requests_of_a_batch_are_requests(llm: Any, seen: list[Timeline]) -> None:
    outputs = llm.generate([vllm_live.prompt(n) for n in (3, 9, 27)], params(), use_tqdm=False)
    assert [t.output_tokens for t in sorted(seen, key=lambda t: int(str(t.request_id)))] == [
        len(output.outputs[0].token_ids) for output in outputs
    ]
    assert {timeline.operation for timeline in seen} == {"text_completion"}
    assert all(list(phases(t)) == ["preprocess", "queue", "prefill", "decode", "postprocess"] for t in seen)


def test_chat_is_chat_and_samples_are_children(llm: Any, seen: list[Timeline]) -> None:
    llm.chat([{"role": "user", "content": "hello"}], params(n=2, temperature=1.0, seed=3), use_tqdm=False)
    (request,) = seen
    assert request.operation == "chat"
    assert len(request.children) == 2
    assert request.output_tokens == 12


def test_a_prompt_that_is_too_long_is_a_rejected_request(llm: Any, seen: list[Timeline]) -> None:
    with pytest.raises(Exception, match="maximum"):
        llm.generate([vllm_live.prompt(3000)], params(), use_tqdm=False)
    (request,) = seen
    assert (request.outcome, request.error_type) == ("reject", "VLLMValidationError")


def test_an_aborted_request(llm: Any, seen: list[Timeline]) -> None:
    engine = llm.llm_engine
    key = engine.add_request("mine", vllm_live.prompt(4), params(max_tokens=50))
    for _ in range(3):
        engine.step()
    engine.abort_request(iter(["mine"]))
    (request,) = seen
    assert (request.outcome, request.error_type, request.request_id) == ("abort", "abort", "mine")
    assert list(phases(request)) == ["preprocess", "queue", "prefill", "decode"]
    assert key not in engine.output_processor.request_states
    while engine.has_unfinished_requests():
        engine.step()


def test_statistics_are_on_and_log_nothing(llm: Any) -> None:
    assert os.environ.get("VLLM_LOGGING_LEVEL")
    names = [type(logger).__name__ for logger in llm.llm_engine.logger_manager.stat_loggers]
    assert names == ["PrometheusStatLogger"]


def test_an_engine_that_fails_ends_its_requests(llm: Any, seen: list[Timeline]) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    executor = core(llm).model_executor
    executor.execute_model = fail
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            llm.generate([vllm_live.prompt(4)] * 2, params(), use_tqdm=False)
    finally:
        del executor.execute_model
    assert [(timeline.outcome, timeline.error_type) for timeline in seen] == [("error", "RuntimeError")] * 2
    llm.llm_engine.abort_request(list(llm.llm_engine.output_processor.request_states), internal=True)


OFFLINE_TARGETS = [
    target
    for target in vllm_live.TARGETS
    if not target.endswith(("__init__", *vllm_live.RARE)) and "AsyncLLM" not in target
]


@pytest.mark.expects_faults
@pytest.mark.parametrize("target", OFFLINE_TARGETS)
@pytest.mark.parametrize("position", vllm_live.POSITIONS)
def test_an_error_in_any_hook_leaves_the_engine_and_its_answers_alone(llm: Any, target: str, position: str) -> None:
    def some() -> list[str]:
        outputs = llm.generate([vllm_live.prompt(n) for n in (4, 8)], params(), use_tqdm=False)
        outputs += llm.chat(
            [{"role": "user", "content": "hello"}], params(n=2, temperature=1.0, seed=3), use_tqdm=False
        )
        llm.llm_engine.add_request("given up", vllm_live.prompt(4), params())
        llm.llm_engine.abort_request(["given up"])
        llm.llm_engine.step()
        return [sample.text for output in outputs for sample in output.outputs]

    healthy = some()
    with vllm_live.sabotaged(target, position) as patcher:
        assert some() == healthy
        assert patcher.breaker.seen > 0
    assert some() == healthy
    assert not llm.llm_engine.output_processor.request_states


def test_inter_token_latencies_are_those_of_the_engine(llm: Any, seen: list[Timeline]) -> None:
    from otel_llm.engine_state import Later
    from otel_llm.recording import Draft, TokenGaps

    steps: list[Any] = []
    patcher = Patcher(ENGINE, steps.append, lambda _headers=None, _carried=None: None, lambda: False)
    otel_llm.uninstrument()
    patcher.arm()
    try:
        delay = Delay(0.05, range(1, 6))
        with wrapped(core(llm).model_executor, "execute_model", delay, nothing):
            llm.generate([vllm_live.prompt(4)] * 3, params(max_tokens=6), use_tqdm=False)
    finally:
        patcher.undo()
        otel_llm.instrument(engines=["vllm"])
    told = [said for step in steps if isinstance(step, Later) for said in step.told()]
    gaps = [said for said in told if isinstance(said, TokenGaps)]
    assert sum(sum(step.gaps.values()) for step in gaps) == 3 * 5
    assert all(seconds >= 0.05 for step in gaps for seconds in step.gaps)
    ended = [draft.timeline() for draft in steps if isinstance(draft, Draft)]
    decodes = [part.duration for t in ended if t for part in t.phases() if part.name == "decode"]
    assert sum(seconds * n for step in gaps for seconds, n in step.gaps.items()) == pytest.approx(sum(decodes) / 1e9)
