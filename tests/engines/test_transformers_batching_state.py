"""Continuous batching: what is told of the batch and its cache, against what the test sees of both."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from tests.engines import tiny_transformers as tiny
from tests.engines.test_transformers_batching import PROMPTS, api, model, results, serving

assert model  # the fixture


class Truth:
    """Every step as the test sees it: (requests, tokens, begin, end), and the share of free cache after it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, int]] = []
        self.times: list[tuple[int, int]] = []
        self.states: list[tuple[int, int]] = []
        from transformers.generation.continuous_batching import scheduler

        schedule, update = scheduler.FIFOScheduler.schedule_batch, api.ContinuousBatchProcessor.update_batch

        def schedule_batch(*args: Any, **kwargs: Any) -> Any:
            result = schedule(*args, **kwargs)
            if result[0]:
                self.steps.append((len(result[0]), sum(len(future.state.tokens_to_process) for future in result[0])))
                self.times.append((time.monotonic_ns(), 0))
            return result

        def update_batch(processor: Any) -> None:
            update(processor)
            here = processor.scheduler
            self.states.append((len(here.active_requests), len(here.waiting_requests)))
            self.times[len(self.states) - 1] = self.times[len(self.states) - 1][0], time.monotonic_ns()

        patch.setattr(scheduler.FIFOScheduler, "schedule_batch", schedule_batch)
        patch.setattr(api.ContinuousBatchProcessor, "update_batch", update_batch)


@pytest.mark.parametrize(("blocks", "new_tokens"), [(64, 8), (8, 24)], ids=["room for all", "preemption"])
def test_steps_and_states_are_those_that_the_test_sees(
    model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch, blocks: int, new_tokens: int
) -> None:
    truth = Truth(monkeypatch)
    model.delays = [0.02]
    with tiny.watched() as seen, serving(model, blocks=blocks, new_tokens=new_tokens) as manager:
        for number, prompt in enumerate(PROMPTS):
            manager.add_request(prompt, request_id=f"r{number}")
        results(manager, len(PROMPTS))
    model.delays = []
    assert [(step.requests, step.tokens) for step in seen.steps] == truth.steps
    durations = [step.duration or 0.0 for step in seen.steps]
    assert min(durations) >= 0.02
    errors = [abs(took - (end - begin) / 1e9) for took, (begin, end) in zip(durations, truth.times, strict=True)]
    assert statistics.median(errors) < 0.001
    told = [(state.running, state.waiting) for state in seen.states]
    assert [pair for pair, step in zip(told, truth.states, strict=False) if pair[0] != step[0]] == []
    assert told[-1] == (0, 0)
    assert sum(state.preemptions or 0 for state in seen.states) == sum(t.preemptions or 0 for t in seen)
    assert any(state.preemptions for state in seen.states) == (blocks < 64)
    usage = [state.kv_cache_usage or 0.0 for state in seen.states]
    assert all(0 <= value <= 1 for value in usage)
    assert max(usage) > 0.5 if blocks < 64 else 0 < max(usage) < 0.5
    assert {(state.engine, state.model, state.rank) for state in seen.states} == {("transformers", "SlowQwen2", 0)}
    if blocks == 64:
        prompts, outputs = sum(map(len, PROMPTS)), len(PROMPTS) * (new_tokens - 1)
        assert sum(step.prefill_tokens or 0 for step in seen.steps) == prompts
        assert sum(step.tokens for step in seen.steps) == prompts + outputs, "the first token comes of the prefill"


def test_a_prompt_that_is_in_the_cache(model: tiny.SlowQwen2) -> None:
    with tiny.watched() as seen, serving(model, new_tokens=2) as manager:
        for number in range(2):
            manager.add_request(list(range(10, 31)), request_id=f"r{number}")
            results(manager, 1)
        shared = manager.batch_processor.cache.use_prefix_sharing
    first, second = seen
    assert shared
    assert (first.prompt_tokens, first.cached_tokens) == (21, 0)
    assert (second.prompt_tokens, second.cached_tokens) == (21, 20), "five blocks of four"
    assert sum(state.prefix_cache_queries or 0 for state in seen.states) == 42
    assert sum(state.prefix_cache_hits or 0 for state in seen.states) == 20
    assert [step.prefill_tokens for step in seen.steps if step.prefill_tokens] == [21, 1]


def test_a_cache_that_is_not_shared_is_not_asked(model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PagedAttentionCache", unshared(api.PagedAttentionCache))
    with tiny.watched() as seen, serving(model, new_tokens=2) as manager:
        manager.add_request(PROMPTS[0], request_id="r0")
        results(manager, 1)
    (timeline,) = seen
    assert timeline.cached_tokens is None
    assert {state.prefix_cache_queries for state in seen.states} == {None}


def unshared(cache: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        made = cache(*args, **kwargs)
        made.use_prefix_sharing = False
        return made

    return make
