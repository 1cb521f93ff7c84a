"""The core's count of its steps, where a real engine seldom goes: see tests/engines/test_vllm_state.py for the rest."""

from __future__ import annotations

from types import SimpleNamespace as Object
from typing import Any

import pytest

from otel_llm.engines import _vllm_state, _vllm_steps, _vllm_told, _vllm_waits
from otel_llm.faults import Breaker
from otel_llm.patching import Call, Probe, argument


def counter() -> _vllm_steps.Steps:
    return _vllm_steps.Steps(Object(vllm_config=Object(parallel_config=Object(data_parallel_rank=3))))


def batch(*, new: int = 0, output_tokens: tuple[int, ...] = (), drafts: int = 0, resumed: int = 0) -> Any:
    """A prompt of ``new`` tokens, and one request for each count of tokens it has put out."""
    names = [f"old-{number}" for number in range(len(output_tokens))]
    each = dict.fromkeys(names, 1 + drafts)
    if new:
        each["new"] = new
    if resumed:
        each[names[0]] = resumed
    return Object(
        total_num_scheduled_tokens=sum(each.values()),
        num_scheduled_tokens=each,
        scheduled_new_reqs=[Object(req_id="new")] if new else [],
        scheduled_cached_reqs=Object(req_ids=names, num_output_tokens=list(output_tokens)),
        scheduled_spec_decode_tokens={name: [0] * drafts for name in names} if drafts else {},
    )


def frontend(*headers: Any) -> Any:
    return Object(outputs=[Object(trace_headers=each) for each in headers])


def test_steps_without_an_output_wait_for_the_next_one() -> None:
    steps, first, second = counter(), frontend(), frontend({"traceparent": "x"}, None)
    steps.end(batch(new=100), {0: first}, 1.0, busy=False)
    steps.end(batch(new=50, output_tokens=(4,)), {}, 2.0, busy=False)
    steps.end(batch(output_tokens=(4, 1)), {0: first, 1: second}, 3.0, busy=False)
    assert [each.trace_headers for each in second.outputs] == [
        {"traceparent": "x", _vllm_steps.STEPS: "3;1 100;2 51;2 2"},
        None,
    ]
    later = frontend(None)
    steps.end(batch(output_tokens=(9,)), {0: later}, 4.0, busy=False)
    assert later.outputs[0].trace_headers == {_vllm_steps.STEPS: "3;1 1"}, "told once"


def test_a_busy_core_tells_several_steps_at_once_and_the_last_of_a_burst_at_once() -> None:
    steps = counter()

    def told(*, busy: bool) -> str | None:
        output = frontend(None)
        steps.end(batch(output_tokens=(1,)), {0: output}, 1.0, busy=busy)
        headers = output.outputs[0].trace_headers
        return None if headers is None else headers[_vllm_steps.STEPS]

    for _ in range(2):
        assert [told(busy=True) for _ in range(_vllm_steps.STEPS_TOLD - 1)] == [None] * (_vllm_steps.STEPS_TOLD - 1)
        assert told(busy=True) == "3" + ";1 1" * _vllm_steps.STEPS_TOLD
    assert told(busy=True) is None
    assert told(busy=False) == "3;1 1;1 1"


def test_what_never_ends_is_bounded() -> None:
    steps = counter()
    kept = [batch(output_tokens=(1,)) for _ in range(_vllm_steps.STEPS_LIMIT + 10)]
    for scheduled in kept:
        steps.begin(scheduled, 0.0, resting=False)
    assert len(steps.begun) == _vllm_steps.STEPS_LIMIT
    for scheduled in kept:
        steps.end(scheduled, {}, 1.0, busy=True)
    assert len(steps.waiting) == _vllm_steps.STEPS_LIMIT
    assert not steps.begun


def test_a_step_counts_from_the_end_of_the_one_before_and_an_empty_one_not_at_all() -> None:
    steps, told = counter(), frontend(None)
    one, empty, two = batch(output_tokens=(1,)), batch(), batch(output_tokens=(2,))
    for scheduled, at in ((one, 10.0), (two, 10.5), (empty, 10.6)):
        steps.begin(scheduled, at, resting=scheduled is one)
    steps.end(one, {}, 11.0, busy=True)
    steps.end(empty, {}, 11.2, busy=True)
    steps.end(two, {0: told}, 11.75, busy=False)
    assert told.outputs[0].trace_headers == {_vllm_steps.STEPS: "3;1 1 0 1.000000;1 1 0 0.750000"}


def test_a_pause_before_a_step_is_looked_at_is_none_of_its_time() -> None:
    steps, told = counter(), frontend(None)
    last, left, first = batch(output_tokens=(1,)), batch(output_tokens=(2,)), batch(new=5)
    steps.begin(last, 10.0, resting=True)
    steps.begin(left, 10.5, resting=False)
    steps.end(last, {}, 11.0, busy=False)
    steps.begin(first, 20.0, resting=True)
    steps.end(left, {}, 20.25, busy=True)
    steps.end(first, {0: told}, 20.75, busy=False)
    assert told.outputs[0].trace_headers == {_vllm_steps.STEPS: "3;1 1 0 1.000000;1 1 0 0.250000;1 5 5 0.500000"}


def test_the_tokens_of_prompts() -> None:
    assert _vllm_steps.prefill_tokens(batch(new=20, output_tokens=(3, 4))) == 20
    assert _vllm_steps.prefill_tokens(batch(new=20, output_tokens=(3, 0), drafts=2)) == 23, "a later chunk"
    assert _vllm_steps.prefill_tokens(batch(output_tokens=(3, 4), drafts=2)) == 0
    assert _vllm_steps.prefill_tokens(batch(output_tokens=(3, 4), resumed=30)) == 30, "computed again"


def test_engines_of_several_api_servers_are_shared() -> None:
    config = Object(model_config=Object(served_model_name=["served", "alias"]), instance_id="a1b2c")
    watched = _vllm_state.Watched(Call({}, None, (), {"vllm_config": config, "engine_idxs": [2, 3], "client_count": 2}))
    assert (watched.model, watched.engines, watched.shared) == ("served", (2, 3), "a1b2c")
    assert _vllm_state.Watched(Call({}, None, (), {"vllm_config": config})).shared is None


@pytest.mark.parametrize(
    ("said", "believed"),
    [("1.5", 1.5), ("0.0", 0.0), ("1e300", None), ("-1", None), ("nan", None), ("inf", None), ("", None)],
)
def test_waits_that_make_no_sense(said: str, believed: float | None) -> None:
    """Seen to fail with any finite number believed: nanoseconds of 1e300 s cannot be counted, the request was lost."""
    assert _vllm_waits.received({_vllm_waits.GRAMMAR_READY: said}, _vllm_waits.GRAMMAR_READY) == believed
    assert _vllm_waits.received({}, _vllm_waits.GRAMMAR_READY) is None


REPLACED = {
    "process_outputs": lambda probe, original: _vllm_told.hooks(probe)[0].replacement(original),
    "update_from_output": lambda probe, original: _vllm_steps.hooks(probe)[0].replacement(original),
    "update_state_after_alloc": lambda probe, original: _vllm_waits._watched(original, probe),
}
"""Functions of ours that stand where vLLM's stood, given all as its caller gave it."""


@pytest.mark.expects_faults
@pytest.mark.parametrize("replaced", REPLACED)
def test_an_argument_with_another_name_is_an_error_of_ours_alone(
    replaced: str, no_hidden_error: list[tuple[str, Exception]]
) -> None:
    """Seen to fail with parameters of that name: a TypeError in vLLM's caller."""

    def original(*_: Any, renamed: Any) -> Any:
        return renamed

    def nothing(*_: Any, **__: Any) -> bool:
        return False

    ours = REPLACED[replaced](Probe(nothing, nothing, nothing, Breaker("vllm")), original)
    about = () if replaced == "update_state_after_alloc" else (Object(),)
    assert ours(*about, renamed=7) == 7
    ((place, error),) = no_hidden_error
    assert place.endswith(replaced)
    assert isinstance(error, KeyError)


def test_an_argument_is_read_by_its_name_however_it_was_passed() -> None:
    def original(self: Any, a: int, b: int = 2) -> None:
        """Method or function."""

    read = argument(original, "b")
    assert read((1, 3), {}) == read((1,), {"b": 3}) == read((), {"b": 3, "a": 1}) == 3
    with pytest.raises(LookupError):
        read((1,), {})
