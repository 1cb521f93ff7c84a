"""What the engine core says of its waits, against what it stamped."""

from __future__ import annotations

from types import SimpleNamespace as Object

import pytest

from otel_llm.engines._vllm_sample import Sample
from otel_llm.engines._vllm_waits import GRAMMAR_READY, KV_TRANSFER, waits

QUEUED, QUEUE = 1_000_000_000, 0.4
GRAMMAR, TRANSFER = "otel_llm.engine.grammar_wait", "otel_llm.engine.kv_transfer_wait"


def test_a_wait_that_ends_while_it_is_scheduled_is_the_queue_time() -> None:
    headers = {GRAMMAR_READY: "1.400021", KV_TRANSFER: "0.400021"}
    assert waits(headers, QUEUED, QUEUE, again=False) == {GRAMMAR: QUEUE, TRANSFER: QUEUE}


def test_a_shorter_wait_is_as_it_was_said() -> None:
    found = waits({GRAMMAR_READY: "1.25", KV_TRANSFER: "0.125"}, QUEUED, QUEUE, again=False)
    assert found == {GRAMMAR: 0.25, TRANSFER: 0.125}


def test_a_grammar_that_was_there_before_was_not_waited_for() -> None:
    assert waits({GRAMMAR_READY: "0.5"}, QUEUED, QUEUE, again=False) == {GRAMMAR: 0.0}


def test_who_was_preempted_may_have_waited_longer_than_in_the_queue() -> None:
    assert waits({KV_TRANSFER: "0.75"}, QUEUED, QUEUE, again=True) == {TRANSFER: 0.75}


@pytest.mark.parametrize("queued", [0, QUEUED])
def test_without_a_queue_time_a_duration_is_known_and_a_moment_is_not(queued: int) -> None:
    headers = {GRAMMAR_READY: "1.25", KV_TRANSFER: "0.125"}
    assert waits(headers, queued, None, again=False) == {TRANSFER: 0.125}
    assert waits({"traceparent": "00"}, queued, QUEUE, again=False) == {}


@pytest.mark.parametrize(
    ("queued", "scheduled", "known"), [(5, 9, True), (5, 5, True), (9, 5, False), (0, 5, False), (5, 0, False)]
)
def test_stamps_that_contradict_each_other_make_no_queue_time(queued: int, scheduled: int, known: bool) -> None:
    """Seen to fail with any two stamps subtracted: a queue time below zero, and a wait cut to it."""
    stats = Object(num_generation_tokens=0, scheduled_ts=scheduled, first_token_ts=0.0, last_token_ts=0.0)
    state = Object(stats=stats, detokenizer=None, prompt_len=1, num_cached_tokens=0)
    sample = Sample(Object(), state, 1, False)  # type: ignore[arg-type] # of the request and its state it needs this
    sample.queued, sample.headers = queued * 1_000_000_000, {KV_TRANSFER: "7.5"}
    attributes = sample.marks(20_000_000_000, "ok")[1]["attributes"]
    assert attributes.get("otel_llm.engine.queue_time") == (scheduled - queued if known else None)
    assert attributes[TRANSFER] == (scheduled - queued if known else 7.5)
