"""``model.generate``: phases against clocks of the test's own, on real tiny models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from otel_llm.testing import assert_adds_up
from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny

MILLISECOND = 1_000_000
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one token": {"max_new_tokens": 1},
    "sampling": {"do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": tiny.EOS},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4, "attention_mask": torch.ones(1, 6)},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture
def seen() -> Iterator[list[Timeline]]:
    with tiny.watched() as timelines:
        yield timelines


def durations(timeline: Timeline) -> dict[str, int]:
    return {phase.name: phase.duration for phase in timeline.phases()}


@pytest.mark.parametrize("mode", MODES)
def test_phases_add_up_to_the_wall_time_of_generate(model: tiny.SlowQwen2, seen: list[Timeline], mode: str) -> None:
    arguments = {"max_new_tokens": 6, **MODES[mode]}
    slack = []
    for _ in range(5):  # another process may interrupt one call between the two clocks, not all of them
        before = time.monotonic_ns()
        model.generate(tiny.prompt(), **arguments)
        after = time.monotonic_ns()
        (timeline,) = seen
        seen.clear()
        assert before <= timeline.start <= timeline.ended <= after
        assert timeline.submitted is None, "nothing waits in generate"
        assert timeline.start == timeline.scheduled
        parts = durations(timeline)
        expected = (
            {"prefill", "postprocess"} if arguments["max_new_tokens"] == 1 else {"prefill", "decode", "postprocess"}
        )
        assert parts.keys() == expected
        assert_adds_up(timeline)
        slack.append(after - before - timeline.duration)
    assert min(slack) < MILLISECOND


def test_known_delays_land_in_prefill_and_decode(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    model.generate(tiny.prompt(), max_new_tokens=6)  # without the first call's set-up
    errors = []
    for _ in range(3):  # an interruption between our stamp and the test's may spoil one call
        seen.clear()
        model.forwards.clear()
        model.delays = [0.2, 0.05]
        before = time.monotonic_ns()
        model.generate(tiny.prompt(), max_new_tokens=6)
        model.delays = []
        (timeline,) = seen
        parts = durations(timeline)
        ends = model.forwards
        assert parts["prefill"] >= 200 * MILLISECOND
        assert parts["decode"] >= 250 * MILLISECOND
        assert timeline.first_token is not None
        assert ends[0] <= timeline.first_token <= ends[1] - 50 * MILLISECOND, "before the second step began"
        errors.append(
            max(abs(parts["prefill"] / (ends[0] - before) - 1), abs(parts["decode"] / (ends[5] - ends[0]) - 1))
        )
        assert timeline.time_per_output_token() == parts["decode"] / 5
    assert min(errors) < 0.1


@pytest.mark.parametrize("mode", ["greedy", "sampling", "prompt lookup", "static cache", "no cache"])
def test_first_and_last_token_are_when_a_streamer_has_them(
    model: tiny.SlowQwen2, seen: list[Timeline], mode: str
) -> None:
    first, last = [], []
    for _ in range(5):
        clock = tiny.Clock()
        model.generate(tiny.prompt(), **{"max_new_tokens": 6, **MODES[mode]}, streamer=clock)
        (timeline,) = seen
        seen.clear()
        assert timeline.first_token is not None
        assert timeline.last_token is not None
        first.append(timeline.first_token - clock.arrivals[1])
        last.append(timeline.last_token - clock.arrivals[-1])
    assert 0 <= min(first) < MILLISECOND
    assert 0 <= min(last) < MILLISECOND


def test_rows_end_when_their_last_token_came(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    ends = [2, 5, 3]
    model.forwards.clear()
    model.delays = [0.03]
    model.generate(
        tiny.prompt(3),
        max_new_tokens=8,
        eos_token_id=tiny.EOS,
        logits_processor=[tiny.Script(ends, width=6)],
    )
    model.delays = []
    (timeline,) = seen
    assert [child.output_tokens for child in timeline.children] == ends
    for child, end in zip(timeline.children, ends, strict=True):
        assert child.start == timeline.start
        assert child.first_token == timeline.first_token
        assert child.last_token == child.ended
        # after the forward that made its last token, before the next one was over
        following = model.forwards[end] if end < len(model.forwards) else timeline.ended
        assert model.forwards[end - 1] <= child.ended <= following
    assert timeline.last_token == max(child.ended for child in timeline.children)


def test_an_assistant_is_draft_time_and_no_request(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    assistant = tiny.qwen2(hidden=32, seed=5)
    assistant.delays = [0.02]
    original, truth = assistant.generate, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        before = time.monotonic_ns()
        output = original(*args, **kwargs)
        truth.append(time.monotonic_ns() - before)
        return output

    assistant.generate = timed
    output = model.generate(tiny.prompt(), max_new_tokens=10, assistant_model=assistant)
    (timeline,) = seen
    assert timeline.model == "SlowQwen2"
    assert timeline.output_tokens == output.shape[1] - 6 == 10
    assert len(truth) > 1
    assert timeline.attributes["otel_llm.engine.draft_time"] == pytest.approx(sum(truth) / 1e9, rel=0.1)
    assert_adds_up(timeline)


def test_a_streamer_in_a_thread(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    clocks = [tiny.Clock() for _ in range(3)]
    threads = [
        threading.Thread(
            target=model.generate,
            kwargs={"inputs": tiny.prompt(width=4 + number), "max_new_tokens": 5 + number, "streamer": clock},
        )
        for number, clock in enumerate(clocks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((t.prompt_tokens, t.output_tokens) for t in seen) == [(4, 5), (5, 6), (6, 7)]
    for timeline in seen:
        arrivals = next(c.arrivals for c in clocks if len(c.arrivals) == 1 + (timeline.output_tokens or 0))
        assert timeline.first_token is not None
        assert arrivals[1] <= timeline.first_token
        assert_adds_up(timeline)


@pytest.mark.skipif(not tiny.CUSTOM_LOOPS, reason="this version of transformers takes no loop as custom_generate")
def test_a_custom_loop_is_measured_as_far_as_it_is_known(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    def asks(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        finished = False
        while model._has_unfinished_sequences(finished, False, device=input_ids.device):
            time.sleep(0.01)
            input_ids = torch.cat([input_ids, input_ids[:, :1]], dim=1)
            finished = input_ids.shape[1] == 9
        return input_ids

    def silent(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids

    def delegates(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return model._sample(input_ids, **kwargs)

    for loop in (asks, silent, delegates):
        model.generate(tiny.prompt(), max_new_tokens=4, custom_generate=loop)
    stamped, opaque, counted = seen
    assert durations(stamped)["decode"] >= 20 * MILLISECOND
    assert stamped.output_tokens is None
    assert [phase.name for phase in opaque.phases()] == ["unsplit"]
    assert opaque.output_tokens is None
    assert counted.output_tokens == 4


@pytest.mark.parametrize("end", [99, 4])
def test_a_deferred_stop_check(model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """What the library does on MPS from 5.17 on: the host hears of a token one step later."""
    from transformers.generation import utils

    if not hasattr(utils, "DeferredStopCheck"):
        pytest.skip("this version of transformers has no DeferredStopCheck")
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(torch, "Event", tiny.Event)
    clock, script = tiny.Clock(), [tiny.Script([end], width=6)]
    model.delays = [0.03]
    model.forwards.clear()
    with tiny.watched() as seen:
        output = model.generate(
            tiny.prompt(), max_new_tokens=6, eos_token_id=tiny.EOS, logits_processor=script, streamer=clock
        )
    model.delays = []
    (timeline,) = seen
    assert clock.arrivals[1] > model.forwards[1], "the check was not deferred"
    assert timeline.output_tokens == output.shape[1] - 6 == min(end, 6) == len(clock.arrivals) - 1
    assert timeline.first_token == pytest.approx(clock.arrivals[1], abs=10 * MILLISECOND)
    assert timeline.last_token == pytest.approx(clock.arrivals[-1], abs=10 * MILLISECOND)
    assert_adds_up(timeline)


def test_the_name_of_a_model_shows_no_path(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    names = {
        "": "SlowQwen2",
        "org/name": "name",
        "/srv/models/tiny/": "tiny",
        "C:\\models\\tiny": "tiny",
        "/cache/hub/models--Org--Name-1B/snapshots/0123abc": "Name-1B",
    }
    for origin in names:
        model.config._name_or_path = origin
        model.generate(tiny.prompt(), max_new_tokens=1)
    model.config._name_or_path = ""
    assert [timeline.model for timeline in seen] == list(names.values())
    assert {timeline.engine for timeline in seen} == {"transformers"}
    assert {timeline.context for timeline in seen} == {"caller"}
