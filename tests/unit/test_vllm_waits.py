"""What the engine core says of its waits, against what it stamped."""

from __future__ import annotations

import pytest

from otel_llm.engines._vllm_waits import GRAMMAR_READY, KV_TRANSFER, waits

QUEUED, SCHEDULED = 1_000_000_000, 1_400_000_000
GRAMMAR, TRANSFER = "otel_llm.engine.grammar_wait", "otel_llm.engine.kv_transfer_wait"


def test_a_wait_that_ends_while_it_is_scheduled_is_the_queue_time() -> None:
    headers = {GRAMMAR_READY: "1.400021", KV_TRANSFER: "0.400021"}
    assert waits(headers, QUEUED, SCHEDULED, again=False) == {GRAMMAR: 0.4, TRANSFER: 0.4}


def test_a_shorter_wait_is_as_it_was_said() -> None:
    found = waits({GRAMMAR_READY: "1.25", KV_TRANSFER: "0.125"}, QUEUED, SCHEDULED, again=False)
    assert found == {GRAMMAR: 0.25, TRANSFER: 0.125}


def test_a_grammar_that_was_there_before_was_not_waited_for() -> None:
    assert waits({GRAMMAR_READY: "0.5"}, QUEUED, SCHEDULED, again=False) == {GRAMMAR: 0.0}


def test_who_was_preempted_may_have_waited_longer_than_in_the_queue() -> None:
    assert waits({KV_TRANSFER: "0.75"}, QUEUED, SCHEDULED, again=True) == {TRANSFER: 0.75}


@pytest.mark.parametrize(("queued", "scheduled"), [(None, SCHEDULED), (QUEUED, None), (None, None)])
def test_without_stamps_a_duration_is_known_and_a_moment_is_not(queued: int | None, scheduled: int | None) -> None:
    headers = {GRAMMAR_READY: "1.25", KV_TRANSFER: "0.125"}
    assert waits(headers, queued, scheduled, again=False) == {TRANSFER: 0.125}
    assert waits({"traceparent": "00"}, queued, scheduled, again=False) == {}
