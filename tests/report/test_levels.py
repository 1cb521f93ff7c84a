from __future__ import annotations

import pytest

from otel_llm.report import findings, tables
from otel_llm.report.levels import Exchange, Level, Spread, growth, summarise
from tests.report.made import MS, request


def exchange(trace_id: str, *, error: str | None = None) -> Exchange:
    return Exchange(trace_id, 120 * MS, 30 * MS, 11, error)


def level(*exchanges: Exchange, start: int = 0, end: int = 1000) -> Level:
    return Level(2, start * MS, end * MS, list(exchanges))


def test_spread() -> None:
    assert Spread.of([None, 4.0]) == Spread(4.0, 4.0)
    assert Spread.of([]) is None
    assert Spread.of([None]) is None
    spread = Spread.of(float(value) for value in range(101))
    assert spread == Spread(50.0, 95.0)


def test_only_the_requests_of_the_level_count() -> None:
    ours = request("a", 100, {"queue": 20, "prefill": 30, "decode": 50})
    other = request("b", 100, {"queue": 900, "prefill": 1, "decode": 1})
    summary = summarise(level(exchange("a")), [ours, other], 0)
    assert (summary.requests, summary.missing, summary.failed) == (1, 0, 0)
    assert {name: spread.mean / MS for name, spread in summary.phases.items()} == {
        "queue": 20,
        "prefill": 30,
        "decode": 50,
    }
    assert summary.shares == {"queue": 0.2, "prefill": 0.3, "decode": 0.5}
    assert summary.duration == Spread(100 * MS, 100 * MS)
    assert summary.time_to_first_token == Spread(50 * MS, 50 * MS)
    assert summary.time_per_output_token == Spread(5 * MS, 5 * MS)
    assert summary.client_duration == Spread(120 * MS, 120 * MS)
    assert summary.client_time_to_first_token == Spread(30 * MS, 30 * MS)


def test_requests_that_took_no_time() -> None:
    """As spans from outside may say. Seen to fail with no share of nothing, and with a growth from 0 to 0."""
    nothing = summarise(level(exchange("a")), [request("a", 100, {"queue": 0, "decode": 0})], 0)
    assert nothing.shares == {"queue": 0.0, "decode": 0.0}
    assert growth(nothing, nothing) is None
    assert tables.phases([nothing], 100)


def test_rates_count_what_lies_in_the_window() -> None:
    inside = request("a", 100, {"prefill": 100, "decode": 100})
    half = request("b", 900, {"prefill": 100, "decode": 100})  # its decode begins when the window ends
    summary = summarise(level(exchange("a"), exchange("b")), [inside, half], 0)
    assert summary.request_rate == pytest.approx(1.5)
    assert summary.token_rate == pytest.approx(11.0)


def test_a_phase_that_some_requests_never_were_in_is_zero_for_them() -> None:
    summary = summarise(
        level(exchange("a"), exchange("b")),
        [request("a", 0, {"queue": 40, "decode": 60}), request("b", 0, {"decode": 100})],
        0,
    )
    assert summary.phases["queue"].mean == 20 * MS
    assert sum(spread.mean for spread in summary.phases.values()) == 100 * MS


def test_lost_and_failed_requests_are_counted() -> None:
    summary = summarise(
        level(exchange("a"), exchange("b"), exchange("c", error="HTTP 500"), exchange("d")),
        [request("a", 0, {"decode": 10}), request("c", 0, {"decode": 10}), request("d", 0, {}, outcome="abort")],
        0,
    )
    assert (summary.requests, summary.missing, summary.failed) == (1, 2, 1)
    wrong = findings.faults([summary])
    assert len(wrong) == 2
    assert "1 requests failed" in wrong[0]
    assert "2 requests did not arrive" in wrong[1]


def test_a_level_that_still_runs_ends_now() -> None:
    running = Level(1, 0, None, [exchange("a")])
    summary = summarise(running, [request("a", 0, {"decode": 500})], 2000 * MS)
    assert summary.request_rate == pytest.approx(0.5)


def test_nothing_measured_is_unknown_and_wrong() -> None:
    summary = summarise(level(), [], 0)
    assert summary.duration is summary.time_to_first_token is summary.client_duration is None
    assert (summary.phases, summary.shares) == ({}, {})
    assert findings.faults([summary]) == ["no request was measured with 2 in flight"]


def test_the_largest_residual_is_kept_with_its_sign_and_reported() -> None:
    short = request("a", 0, {"decode": 10})
    broken = request("b", 0, {"queue": 10, "decode": 10})
    broken = type(broken)(**{name: getattr(broken, name) for name in broken.__slots__} | {"parts": broken.parts[1:]})
    summary = summarise(level(exchange("a"), exchange("b")), [short, broken], 0)
    assert summary.residual == -10 * MS
    assert "differ by -10,000,000 ns" in findings.faults([summary])[0]


def test_growth_is_split_by_phase_unless_it_is_small() -> None:
    low = summarise(level(exchange("a")), [request("a", 0, {"queue": 10, "decode": 90})], 0)
    high = summarise(level(exchange("b")), [request("b", 0, {"queue": 85, "decode": 115})], 0)
    assert growth(low, high) == {"queue": 0.75, "decode": 0.25}
    same = summarise(level(exchange("c")), [request("c", 0, {"queue": 20, "decode": 95})], 0)
    assert growth(low, same) is None
