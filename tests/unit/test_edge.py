"""An HTTP request and its engine's leave as one draft, which nobody makes a timeline of before it is recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from otel_llm import edge
from otel_llm.recording import Draft
from otel_llm.timeline import Timeline

ENGINE = Timeline(
    engine="vllm", operation="chat", model="m", request_id="r", context=None, wall_offset=0, outcome="ok",
    received=120, submitted=130, scheduled=140, first_token=150, last_token=160, ended=165, output_tokens=2,
)  # fmt: skip


class Ended(Draft):
    """A request of an engine that has ended; no timeline can be made of it if there is none."""

    def __init__(self, engine: Engine, timeline: Timeline | None) -> None:
        self.engine, self.ending = engine, timeline

    def make(self) -> Timeline:
        self.engine.made += 1
        if self.ending is None:
            raise RuntimeError("not to be made")
        return self.ending

    def swallow(self, place: str, error: Exception) -> None:
        self.engine.hidden.append((place, error))


class Engine:
    """An engine's drafts, counting those that were made."""

    def __init__(self) -> None:
        self.made = 0
        self.hidden: list[tuple[str, Exception]] = []

    def draft(self, timeline: Timeline | None = ENGINE) -> Draft:
        return Ended(self, timeline)


def served(emitted: list[Draft]) -> edge.ServerEdge:
    server = edge.ServerEdge(emitted.append, lambda _headers: "captured", {})
    server.arrived, server.parsed, server.received = 100, 105, 110
    return server


def test_a_request_is_made_when_it_is_recorded() -> None:
    """Seen to fail with a ServerEdge that joins in report()."""
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    server.expect()
    assert server.collect(engine.draft())
    server.ended, server.settled = 200, True
    server.report()
    server.report()
    (draft,) = emitted
    assert engine.made == 0
    timeline = draft.timeline()
    assert engine.made == 1
    assert timeline == replace(ENGINE, arrived=100, parsed=105, received=110, ended=200)


def test_a_client_that_asks_for_times_has_them_made_once() -> None:
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    server.collect(engine.draft())
    timing = server.timing(peer_limited=False)
    assert timing is not None
    assert timing.phases["queue"] == 10
    server.report()
    assert emitted[0].timeline() is not None
    assert engine.made == 1


def test_the_last_engine_request_brings_about_the_report() -> None:
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    server.expect()
    server.expect()
    server.collect(engine.draft())
    server.ended, server.settled = 200, True
    assert not emitted
    server.collect(engine.draft(replace(ENGINE, request_id="r-2", first_token=145)))
    (timeline,) = [draft.timeline() for draft in emitted]
    assert timeline is not None
    assert (timeline.first_token, timeline.output_tokens, len(timeline.children)) == (145, 4, 2)
    assert not server.collect(engine.draft()), "it has been reported"


def test_engine_requests_that_are_too_many_become_one() -> None:
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    for _ in range(5 * edge.CHILDREN_KEPT):
        server.collect(engine.draft())
    server.report()
    timeline = emitted[0].timeline()
    assert timeline is not None
    assert timeline.output_tokens == 10 * edge.CHILDREN_KEPT
    assert len(timeline.children) == edge.CHILDREN_KEPT


def test_many_that_cannot_be_made_leave_the_others() -> None:
    """Seen to fail without a look at whether any is left to become one."""
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    for timeline in (ENGINE, *[None] * 3 * edge.CHILDREN_KEPT):
        assert server.collect(engine.draft(timeline))
    server.report()
    timeline = emitted[0].timeline()
    assert timeline is not None
    assert timeline.output_tokens == 2
    assert len(engine.hidden) == 3 * edge.CHILDREN_KEPT


@pytest.mark.parametrize("others", [0, 1])
def test_one_that_cannot_be_made_is_counted_and_left_out(others: int) -> None:
    emitted: list[Draft] = []
    engine, server = Engine(), served(emitted)
    for timeline in (None, *[ENGINE] * others):
        server.collect(engine.draft(timeline))
    server.report()
    timeline = emitted[0].timeline()
    assert (timeline is None) is not bool(others)
    assert [place for place, _ in engine.hidden] == ["timeline"]


def test_an_answer_that_reached_no_engine_is_told_only_if_it_was_refused() -> None:
    emitted: list[Draft] = []
    served(emitted).report()
    refused = served(emitted)
    refused.refusal, refused.outcome, refused.error_type = ("vllm", "chat"), "reject", "400"
    refused.report()
    (draft,) = emitted
    timeline = draft.timeline()
    assert timeline is not None
    assert (draft.context, timeline.context) == ("captured", "captured")
    assert (timeline.engine, timeline.outcome, timeline.error_type) == ("vllm", "reject", "400")
