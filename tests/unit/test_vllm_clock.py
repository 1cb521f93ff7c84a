"""Stamps of another clock: told apart, moved as a whole, never invented."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_llm.engines._vllm_clock import Stamps, anchored

SPAN = st.integers(0, 10**12)
OFFSET = st.integers(-(10**15), 10**15)


class Truth:
    """A request on our clock, and the ways that its messages took."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        there, engine_queue, prefill, decode, back_first, back_last = parts
        self.submitted = 10**9
        queued = self.submitted + there
        scheduled = queued + engine_queue
        self.stamps = Stamps(queued, scheduled, scheduled + prefill, scheduled + prefill + decode)
        self.first_received = scheduled + prefill + back_first
        self.ended = scheduled + prefill + decode + back_last

    def far(self, beyond: int) -> int:
        """An offset that is larger than the whole request, by so much, in the same direction."""
        length = self.ended - self.submitted
        return beyond + length if beyond > 0 else beyond - length

    def anchored(self, offset: int) -> Stamps | None:
        moved = Stamps(*(None if stamp is None else stamp - offset for stamp in self.stamps))
        return anchored(moved, self.submitted, self.first_received, self.ended)


TRUTHS = st.builds(Truth, st.tuples(SPAN, SPAN, SPAN, SPAN, SPAN, SPAN))


@given(TRUTHS)
def test_stamps_of_our_own_clock_stay(truth: Truth) -> None:
    assert truth.anchored(0) is None


@given(TRUTHS, OFFSET)
def test_durations_hold_and_the_error_is_the_quicker_way_back(truth: Truth, offset: int) -> None:
    found = truth.anchored(offset) or truth.anchored(truth.far(offset or 1))
    assert found is not None
    known = [stamp for stamp in found if stamp is not None]
    true = [stamp for stamp in truth.stamps if stamp is not None]
    shift = known[0] - true[0]
    assert [stamp - shift for stamp in known] == true
    assert 0 <= shift <= min(truth.first_received - true[2], truth.ended - true[3])
    assert truth.submitted <= known[0]
    assert known[2] <= truth.first_received
    assert known[3] <= truth.ended


@given(TRUTHS, OFFSET.filter(bool))
def test_a_clock_that_is_far_off_is_always_found_out(truth: Truth, beyond: int) -> None:
    assert truth.anchored(truth.far(beyond)) is not None


@given(TRUTHS, OFFSET)
def test_a_request_given_up_before_its_last_token(truth: Truth, offset: int) -> None:
    queued, scheduled, first, last = truth.stamps
    truth.stamps = Stamps(queued, scheduled, None, None)
    assert truth.anchored(offset) is None  # nothing was received that could tell
    truth.stamps = Stamps(queued, scheduled, first, last)


@given(st.tuples(*[st.none() | st.integers(0, 100)] * 4), *[st.integers(0, 100)] * 3)
def test_no_stamps_whatever_break_it(stamps: tuple[int | None, ...], submitted: int, received: int, ended: int) -> None:
    found = anchored(Stamps(*stamps), submitted, received, ended)
    if found is not None:
        assert [stamp is None for stamp in found] == [stamp is None for stamp in stamps]
        known = [stamp for stamp in found if stamp is not None]
        assert submitted <= min(known)
        assert known == sorted(known)


def test_stamps_that_contradict_each_other_are_left() -> None:
    assert anchored(Stamps(5, 4, 3, 2), 100, 110, 120) is None
    assert anchored(Stamps(0, 50, 60, 70), 100, 110, 120) is None  # more time than there was
