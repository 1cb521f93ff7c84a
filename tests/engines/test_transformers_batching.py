"""Continuous batching: queue, prefill and decode against what the test sees of the scheduler and the outputs."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from otel_llm.engines._transformers_batched import Batched, Sample
from otel_llm.testing import assert_adds_up
from tests.engines import tiny_transformers as tiny

api = pytest.importorskip(
    "transformers.generation.continuous_batching.continuous_api", reason="this version has no continuous batching"
)
if not hasattr(api, "OutputRouter"):
    pytest.skip("continuous batching before 5.5 is not measured", allow_module_level=True)
from transformers import GenerationConfig  # noqa: E402  # only where the module above exists
from transformers.generation.configuration_utils import ContinuousBatchingConfig  # noqa: E402  # likewise
from transformers.generation.continuous_batching import requests, scheduler  # noqa: E402  # likewise

PROMPTS = [list(range(10, 16 + extra)) for extra in range(4)]


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture
def seen() -> Iterator[tiny.Seen]:
    with tiny.watched() as timelines:
        yield timelines


class Truth:
    """What the test itself sees; monotonic nanoseconds."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.admissions: dict[str, tuple[int, int]] = {}
        """Begin and end of the scheduling that first put a request into a batch."""
        self.deliveries: dict[str, list[int]] = defaultdict(list)
        self.tokens: Counter[str] = Counter()
        self.preemptions: Counter[str] = Counter()
        schedule, deliver = scheduler.FIFOScheduler.schedule_batch, api.OutputRouter.deliver_batch
        renew = requests.RequestState.create_equivalent_initial_request

        def schedule_batch(*args: Any, **kwargs: Any) -> Any:
            before = time.monotonic_ns()
            result = schedule(*args, **kwargs)
            for future in result[0] or ():
                self.admissions.setdefault(future.state.request_id, (before, time.monotonic_ns()))
            return result

        def deliver_batch(router: Any, outputs: Any) -> None:
            for output in outputs:
                # Before 5.19 the last one may bring nothing new, after a preemption.
                if len(output.generated_tokens) > self.tokens[output.request_id]:
                    self.tokens[output.request_id] = len(output.generated_tokens)
                    self.deliveries[output.request_id].append(time.monotonic_ns())
            deliver(router, outputs)

        def create_equivalent_initial_request(state: Any) -> Any:
            self.preemptions[state.request_id] += 1
            return renew(state)

        patch.setattr(scheduler.FIFOScheduler, "schedule_batch", schedule_batch)
        patch.setattr(api.OutputRouter, "deliver_batch", deliver_batch)
        patch.setattr(requests.RequestState, "create_equivalent_initial_request", create_equivalent_initial_request)


@contextmanager
def serving(model: tiny.SlowQwen2, *, blocks: int = 64, new_tokens: int = 8, samples: int = 1) -> Iterator[Any]:
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=samples > 1,
        num_return_sequences=samples,
        eos_token_id=-1,
        pad_token_id=tiny.PAD,
    )
    batching = ContinuousBatchingConfig(num_blocks=blocks, block_size=4, max_batch_tokens=64, use_cuda_graph=False)
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, timeout=60)


def results(manager: Any, count: int) -> dict[str, Any]:
    """The outputs of as many requests as have been added."""
    done: dict[str, Any] = {}
    deadline = time.monotonic() + 120
    while len(done) < count and time.monotonic() < deadline:
        output = manager.get_result(timeout=1)
        if output is not None and output.status.name in ("FINISHED", "FAILED"):
            done[output.request_id] = output
    assert len(done) == count
    return done


@pytest.mark.parametrize(("blocks", "new_tokens"), [(64, 8), (8, 24)], ids=["room for all", "preemption"])
def test_phases_are_those_that_the_test_sees(
    model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch, blocks: int, new_tokens: int
) -> None:
    truth = Truth(monkeypatch)
    asked = {}
    model.forwards.clear()
    with tiny.watched() as seen, serving(model, blocks=blocks, new_tokens=new_tokens) as manager:
        for number, prompt in enumerate(PROMPTS):
            before = time.monotonic_ns()
            manager.add_request(prompt, request_id=f"r{number}", streaming=True)
            asked[f"r{number}"] = before, time.monotonic_ns()
        outputs = results(manager, len(PROMPTS))
    assert {timeline.request_id for timeline in seen} == asked.keys()
    for timeline in seen:
        key = str(timeline.request_id)
        assert_adds_up(timeline)
        assert [part.name for part in timeline.phases()][:3] == ["queue", "prefill", "decode"]
        assert (timeline.outcome, timeline.context) == ("ok", "caller")
        assert timeline.output_tokens == len(outputs[key].generated_tokens)
        # Before 5.19 a preempted request that streams ends too early.
        assert timeline.output_tokens == new_tokens or truth.preemptions[key]
        assert timeline.prompt_tokens == len(outputs[key].prompt_ids) == len(PROMPTS[int(key[1:])])
        assert timeline.finish_reasons == ("length",)
        assert timeline.submitted is not None
        assert timeline.scheduled is not None
        assert timeline.first_token is not None
        assert timeline.last_token is not None
        assert asked[key][0] <= timeline.submitted <= asked[key][1]
        before, after = truth.admissions[key]
        assert before <= timeline.scheduled <= after
        # A token is stamped between the forward that made it and its delivery.
        for stamp, delivered in (
            (timeline.first_token, truth.deliveries[key][0]),
            (timeline.last_token, truth.deliveries[key][-1]),
        ):
            assert max(end for end in model.forwards if end <= delivered) <= stamp <= delivered
        assert timeline.preemptions == truth.preemptions[key]
        assert (timeline.preemption_stall > 0) == bool(timeline.preemptions)
        assert timeline.preemption_stall <= timeline.last_token - timeline.scheduled
    assert bool(truth.preemptions) == (blocks < 64), "the case is pointless otherwise"


def test_requests_wait_for_a_free_place(model: tiny.SlowQwen2, seen: tiny.Seen) -> None:
    model.delays = [0.02]
    with serving(model, blocks=4, new_tokens=4) as manager:  # room for one at a time
        for number in range(3):
            manager.add_request(list(range(10 + 20 * number, 22 + 20 * number)), request_id=f"r{number}")
        results(manager, 3)
    model.delays = []
    for earlier, later in itertools.pairwise(sorted(seen, key=lambda timeline: timeline.scheduled or 0)):
        assert earlier.last_token is not None
        assert later.scheduled is not None
        assert later.scheduled >= earlier.last_token
        queue = later.phases()[0]
        assert queue.name == "queue"
        assert queue.duration >= earlier.last_token - later.start > 0


def test_samples_of_a_prompt_are_one_request(model: tiny.SlowQwen2, seen: tiny.Seen) -> None:
    with serving(model, samples=3) as manager:
        manager.add_request(PROMPTS[0], request_id="r0")
        outputs = results(manager, 3)
    (timeline,) = seen
    assert timeline.request_id == "r0"
    assert len(timeline.children) == 3
    assert timeline.output_tokens == sum(len(output.generated_tokens) for output in outputs.values()) == 24
    assert timeline.prompt_tokens == 6
    assert_adds_up(timeline)


def generate_batch(model: tiny.SlowQwen2) -> dict[str, tuple[list[int], Any]]:
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=tiny.PAD)
    batching = ContinuousBatchingConfig(num_blocks=32, block_size=4, max_batch_tokens=64, use_cuda_graph=False)
    outputs = model.generate_batch(
        inputs=PROMPTS, generation_config=config, continuous_batching_config=batching, progress_bar=False
    )
    return {key: (output.generated_tokens, output.timestamps) for key, output in outputs.items()}


def test_generate_batch_returns_what_it_did(model: tiny.SlowQwen2) -> None:
    plain = generate_batch(model)
    with tiny.watched() as seen:
        assert generate_batch(model) == plain
    assert sorted(str(timeline.request_id) for timeline in seen) == sorted(plain)
    assert all(timeline.output_tokens == 5 for timeline in seen)


@pytest.mark.expects_faults
@pytest.mark.parametrize("part", ["attach", "admitted", "token", "end"])
def test_parts_that_fail_change_nothing(
    model: tiny.SlowQwen2, part: str, monkeypatch: pytest.MonkeyPatch, no_hidden_error: list[tuple[str, Exception]]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(part)

    plain = generate_batch(model)
    monkeypatch.setattr(Batched if part == "attach" else Sample, part, fail)
    with tiny.watched():
        assert generate_batch(model) == plain
    assert {str(error) for _, error in no_hidden_error} == {part}


def test_a_failure_is_an_error(model: tiny.SlowQwen2, seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(1000))

    def forward(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == 3:
            raise ZeroDivisionError
        return tiny.SlowQwen2.forward(model, *args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    with serving(model) as manager:
        manager.add_request(PROMPTS[0], request_id="r0")
        output = results(manager, 1)["r0"]
    (timeline,) = seen
    assert output.error is not None
    assert timeline.outcome == "error"
    assert timeline.error_type == "ZeroDivisionError"
    assert [part.name for part in timeline.phases()] == ["queue", "prefill", "decode"]
    assert timeline.output_tokens == len(output.generated_tokens)
    assert_adds_up(timeline)


def test_a_cancelled_request_is_an_abort(model: tiny.SlowQwen2, seen: tiny.Seen) -> None:
    model.delays = [0.01]
    with serving(model, new_tokens=200) as manager:
        manager.add_request(PROMPTS[0], request_id="r0", streaming=True)
        assert manager.get_result(timeout=60) is not None
        manager.cancel_request("r0")
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
    model.delays = []
    (timeline,) = seen
    assert (timeline.outcome, timeline.error_type) == ("abort", "cancelled")
    assert [part.name for part in timeline.phases()] == ["queue", "prefill", "decode"]
    assert 0 < (timeline.output_tokens or 0) < 200


def test_a_request_that_never_reaches_a_batch_is_an_error(
    model: tiny.SlowQwen2, seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(api, "PagedAttentionCache", fail)
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=tiny.PAD)
    manager = model.init_continuous_batching(generation_config=config)
    manager.add_request(PROMPTS[0], request_id="r0")
    manager.start()
    manager.stop(block=True, timeout=60)
    (timeline,) = seen
    assert (timeline.outcome, timeline.error_type) == ("error", "MemoryError")
    assert [part.name for part in timeline.phases()] == ["queue"]


def test_a_request_to_a_stopped_manager_is_refused(model: tiny.SlowQwen2, seen: tiny.Seen) -> None:
    with serving(model) as manager:
        pass
    if hasattr(manager, "stop_event"):
        pytest.skip("before 5.9 it would wait for the manager to be started again")
    manager.add_request(PROMPTS[0], request_id="late")
    (timeline,) = seen
    assert (timeline.outcome, timeline.request_id) == ("reject", "late")
