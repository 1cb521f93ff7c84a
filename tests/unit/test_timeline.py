"""Phases are positive, adjoin, and add up to the total exactly, whatever the stamps."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm.testing import assert_adds_up
from otel_llm.timeline import PHASES, UNSPLIT, Timeline, ending, merged, nanoseconds

STAMPS = ("arrived", "parsed", "received", "submitted", "scheduled", "first_token", "last_token")
ORDERED = dict(zip(STAMPS, range(100, 800, 100), strict=True))


def timeline(ended: int = 800, **fields: object) -> Timeline:
    fixed = {"engine": "e", "operation": "chat", "wall_offset": 0, "ended": ended}
    return Timeline(**{**fixed, **fields})  # type: ignore[arg-type]


def names(request: Timeline) -> list[str]:
    return [phase.name for phase in request.phases()]


def test_all_stamps_give_all_phases() -> None:
    request = timeline(**ORDERED)
    assert names(request) == list(PHASES)
    assert {phase.duration for phase in request.phases()} == {100}


def test_phases_before_the_first_stamp_are_absent() -> None:
    request = timeline(**{**ORDERED, "arrived": None, "parsed": None})
    assert names(request) == ["preprocess", "queue", "prefill", "decode", "postprocess"]
    assert request.start == 300


def test_a_missing_stamp_leaves_its_neighbours_unsplit() -> None:
    request = timeline(**{**ORDERED, "scheduled": None})
    assert names(request) == ["accept", "network", "preprocess", UNSPLIT, "decode", "postprocess"]
    assert request.phases()[3].between == ("queue", "prefill")


@pytest.mark.parametrize("reached", range(1, len(STAMPS)))
def test_an_early_end_cuts_the_phase_that_the_request_was_in(reached: int) -> None:
    stamps = dict(list(ORDERED.items())[:reached])
    request = timeline(ended=stamps[STAMPS[reached - 1]] + 7, outcome="abort", **stamps)
    assert names(request) == list(PHASES[:reached])
    assert request.phases()[-1].duration == 7


def test_an_early_end_in_an_unknown_phase_is_unsplit() -> None:
    request = timeline(submitted=100, outcome="abort", cut_known=False)
    assert [(phase.name, phase.between) for phase in request.phases()] == [(UNSPLIT, ("queue", "prefill"))]


def test_time_blocked_by_the_peer_is_network() -> None:
    request = timeline(**ORDERED, stall=30)
    assert [(p.name, p.duration) for p in request.phases()[-2:]] == [("postprocess", 70), ("network", 30)]


def test_a_stall_longer_than_the_delivery_is_not_believed() -> None:
    assert names(timeline(**ORDERED, stall=101))[-1] == "postprocess"


def test_contradicting_stamps_are_dropped_not_repaired() -> None:
    request = timeline(**{**ORDERED, "scheduled": 650})  # after the first token at 600
    assert names(request) == ["accept", "network", "preprocess", UNSPLIT, "postprocess"]
    assert request.phases()[3].between == ("queue", "prefill", "decode")
    assert request.time_to_first_token() is None


def test_a_stamp_from_another_clock_is_dropped() -> None:
    assert names(timeline(**{**ORDERED, "first_token": 10**15}))[3:] == ["queue", UNSPLIT, "postprocess"]


def test_no_start_and_an_end_before_the_start_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one stamp"):
        timeline()
    with pytest.raises(ValueError, match="cannot end"):
        timeline(ended=50, submitted=100)


def test_a_timeline_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        timeline(**ORDERED).ended = 1  # type: ignore[misc]
    assert not hasattr(timeline(**ORDERED), "__dict__")


def test_time_per_output_token_needs_two_tokens_and_a_full_answer() -> None:
    assert timeline(**ORDERED, output_tokens=5).time_per_output_token() == 25
    assert timeline(**ORDERED, output_tokens=1).time_per_output_token() is None
    assert timeline(**ORDERED, output_tokens=5, outcome="abort").time_per_output_token() is None


def test_samples_are_merged_at_their_earliest_and_latest() -> None:
    first = timeline(submitted=100, scheduled=300, first_token=350, last_token=500, output_tokens=3, prompt_tokens=9)
    second = timeline(submitted=110, scheduled=200, first_token=400, last_token=700, output_tokens=5, prompt_tokens=9)
    request = timeline(**merged([first, second]))
    assert (request.submitted, request.scheduled, request.first_token, request.last_token) == (100, 200, 350, 700)
    assert (request.output_tokens, request.prompt_tokens) == (8, 9)
    assert request.children == (first, second)


def test_one_unfinished_sample_leaves_the_last_token_unknown() -> None:
    done = timeline(submitted=100, scheduled=300, first_token=350, last_token=500)
    cut = timeline(submitted=100, scheduled=300, first_token=360, outcome="abort")
    assert merged([done, cut])["last_token"] is None


def test_a_step_of_the_wall_clock_moves_a_request_and_cannot_stretch_it() -> None:
    stepped = timeline(**ORDERED, wall_offset=-(10**18))
    assert stepped.wall(stepped.start) == 100 - 10**18
    assert stepped.wall(stepped.ended) - stepped.wall(stepped.start) == timeline(**ORDERED).duration


def test_ending_tells_who_ended_it() -> None:
    assert ending(None, accepted=True) == ("ok", None)
    assert ending(GeneratorExit(), accepted=True) == ("abort", "cancelled")
    assert ending(ValueError(), accepted=True) == ("error", "ValueError")
    assert ending(ValueError(), accepted=False) == ("reject", "ValueError")


def test_an_engine_stamp_of_zero_is_no_stamp() -> None:
    assert nanoseconds(0.0) is None
    assert nanoseconds(None) is None
    assert nanoseconds(1.5) == 1_500_000_000


maybe_stamp = st.none() | st.integers(-(10**12), 10**12)
any_stamps = st.fixed_dictionaries(dict.fromkeys(STAMPS, maybe_stamp))


@st.composite
def timelines(draw: st.DrawFn, *, samples: int = 3) -> Timeline:
    """Stamps in any order, any of them missing, any outcome, any preemption, any step of the wall clock."""
    stamps = draw(any_stamps.filter(lambda found: any(stamp is not None for stamp in found.values())))
    start = next(stamps[name] for name in STAMPS if stamps[name] is not None)
    return timeline(
        **stamps,
        ended=draw(st.integers(start, start + 10**12)),
        stall=draw(st.integers(-5, 10**12)),
        outcome=draw(st.sampled_from(["ok", "abort", "error", "reject"])),
        cut_known=draw(st.booleans()),
        wall_offset=draw(st.integers(-(10**18), 10**18)),
        output_tokens=draw(st.none() | st.integers(0, 5)),
        preemptions=draw(st.none() | st.integers(0, 9)),
        preemption_stall=draw(st.integers(0, 10**12)),
        children=tuple(draw(st.lists(timelines(samples=0), max_size=samples))) if samples else (),
    )


@given(timelines())
def test_phases_always_add_up(request: Timeline) -> None:
    assert_adds_up(request)
    first = request.time_to_first_token()
    assert first is None or 0 <= first <= request.duration
    each = request.time_per_output_token()
    assert each is None or each >= 0


@given(timelines())
def test_named_phases_start_and_end_at_stamps_that_were_given(request: Timeline) -> None:
    """Nothing is invented: only the stall's turn and the two ends are not engine or server stamps."""
    given_stamps = {getattr(request, name) for name in STAMPS} | {request.ended, request.ended - request.stall}
    for phase in request.phases():
        assert phase.start in given_stamps
        assert phase.end in given_stamps


@given(st.lists(st.integers(0, 10**6), min_size=8, max_size=8).map(sorted), st.sets(st.sampled_from(STAMPS[1:])))
def test_stamps_in_order_are_all_believed(marks: list[int], missing: set[str]) -> None:
    stamps = {name: None if name in missing else mark for name, mark in zip(STAMPS, marks, strict=False)}
    request = timeline(ended=marks[-1], **stamps)
    assert_adds_up(request)
    edges = {mark for phase in request.phases() for mark in (phase.start, phase.end)}
    zero_length = {mark for mark in marks if marks.count(mark) > 1}
    assert {s for s in stamps.values() if s is not None} <= edges | zero_length | {request.start, request.ended}


@given(st.lists(timelines(samples=0), min_size=1, max_size=4), st.integers(0, 10**13))
def test_merged_samples_add_up_too(samples: list[Timeline], margin: int) -> None:
    fields = merged(samples)
    start = min(sample.start for sample in samples)
    ended = max(sample.ended for sample in samples) + margin
    assert_adds_up(timeline(**{**fields, "received": start, "ended": ended}))
