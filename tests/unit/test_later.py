"""What is kept at every step is read once, in order, by whoever records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from otel_llm.engine_state import LATER_LIMIT, EngineState, Later


class Listener:
    """Reads what it was told of when it likes."""

    def __init__(self) -> None:
        self.announced = 0
        self.errors: list[tuple[str, str]] = []
        self.read: list[int] = []
        self.during: Callable[[], object] | None = None
        """What another thread does while the first step is read."""
        self.later = Later(self.emit, self.look, "record", lambda place, error: self.errors.append((place, str(error))))

    def emit(self, later: Later) -> None:
        assert later is self.later
        self.announced += 1

    def look(self, told: int) -> Iterator[EngineState]:
        if told < 0:
            raise RuntimeError("ours")
        during, self.during = self.during, None
        if during is not None:
            during()
        self.read.append(told)
        yield EngineState("vllm", "m", told)


def test_one_telling_stands_for_all_that_is_kept_until_it_is_read() -> None:
    listener = Listener()
    for step in range(100):
        listener.later.keep(step)
    assert (listener.announced, listener.read) == (1, []), "nothing is looked at by whoever keeps it"
    assert [said.rank for said in listener.later.told() if isinstance(said, EngineState)] == list(range(100))
    assert listener.later.told() == []
    listener.later.keep(100)
    assert listener.announced == 2


def test_an_error_costs_one_step() -> None:
    listener = Listener()
    for step in (1, -1, 2):
        listener.later.keep(step)
    assert len(listener.later.told()) == 2
    assert listener.errors == [("record", "ours")]
    listener.later.keep(3)
    assert listener.announced == 2


def test_where_nobody_listens_it_is_bounded() -> None:
    listener = Listener()
    for step in range(2 * LATER_LIMIT):
        listener.later.keep(step)
    assert listener.announced > LATER_LIMIT, "one that reads too slowly is told again, and so made to"
    assert len(listener.later.told()) == LATER_LIMIT
    assert listener.read[0] == LATER_LIMIT


def test_what_is_kept_while_another_reads_is_announced() -> None:
    """Seen red where the announcement is taken back after the reading."""
    listener = Listener()
    listener.during = lambda: listener.later.keep(2)
    listener.later.keep(1)
    listener.later.told()
    assert (listener.announced, listener.read) == (2, [1])
    listener.later.told()
    assert listener.read == [1, 2]


def test_two_may_read_at_once() -> None:
    """With an application's own providers each engine's thread reads. Seen red where the second finds nothing left."""
    listener = Listener()
    listener.during = lambda: listener.later.told()
    for step in (1, 2, 3):
        listener.later.keep(step)
    listener.later.told()
    assert sorted(listener.read) == [1, 2, 3]
    assert listener.errors == []


def test_a_forked_child_tells_its_own_steps_only() -> None:
    """Seen red without ``_forget``: nobody was told in the child, and the parent's step was told twice."""
    listener = Listener()
    listener.later.keep(1)
    child = os.fork()
    if child == 0:
        listener.later.keep(2)
        told = [said.rank for said in listener.later.told() if isinstance(said, EngineState)]
        os._exit(0 if (listener.announced, told) == (2, [2]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [said.rank for said in listener.later.told() if isinstance(said, EngineState)] == [1]
