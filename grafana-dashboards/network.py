"""What clients see: the way to the server and back, beside the server's own time."""

from __future__ import annotations

from typing import Any, Final

from page import Section, build_dashboard
from panels import Target, notes, number, time_series
from parts import Measured, distribution, mean_stack, p95, quantile_lines, share_stack
from signals import (
    CLIENT,
    CLIENT_DURATION,
    CLIENT_FAILED,
    CLIENT_PHASE_ORDER,
    FIRST_CHUNK,
    METHOD_LABEL,
    NETWORK,
    client_phase,
)

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-network"
_COLOURS: Final = {**COLOURS, "connect": "#8a5a3c", "consumer": "#b9ae3a"}
_ATTEMPT: Final = Measured("attempt", CLIENT_DURATION, "an attempt's duration")
_CHUNK: Final = Measured("first chunk", FIRST_CHUNK, "the time to the first token-bearing event")
_METHOD: Final = f"{{{{{METHOD_LABEL}}}}}"

_HOW_TO_READ: Final = """\
Job and instance are those of the **clients**. An attempt is one HTTP request of an instrumented client. Where the \
server tells its times, the client's time is cut into **connect**, **network**, **consumer** (the caller held the \
stream) and the server's phases, per request: never as a difference of two averages. Without that, what cannot be \
told apart is **unsplit**. Methods: `paired` exact, `client_engine` and `client_tcp` without the server's help, \
`server_tcp` the server's own estimate.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    description = "Time of clients' attempts by part: connection, network, consumer, and the server's phases."
    sections = [_attempts(), _network()]
    return build_dashboard(UID, "LLM: network and clients", description, sections, source=CLIENT_DURATION, side=CLIENT)


def _attempts() -> Section:
    return Section(
        "Attempts of clients",
        [
            number(
                "Attempts/s",
                Target(CLIENT_DURATION.count_rate(), "attempts/s"),
                unit="reqps",
                formula="finished attempts / s, every outcome; a retry is an attempt of its own.",
                reading="More than the requests that the servers count: some never arrive.",
                width=6,
            ),
            p95(_ATTEMPT, reading="What callers wait for a whole answer.", width=6),
            p95(_CHUNK, reading="TTFT as the caller sees it.", width=6),
            number(
                "Failed attempts",
                Target(f"({CLIENT_FAILED.count_rate()} or vector(0)) / {CLIENT_DURATION.count_rate()}", "failed"),
                unit="percentunit",
                formula="attempts with an error type / all attempts.",
                reading="Includes those that no server ever saw.",
                width=6,
            ),
            notes("How to read this page", _HOW_TO_READ, formula="attempt = sum of its parts.", height=4),
            mean_stack(
                "Mean attempt by part",
                client_phase,
                CLIENT_PHASE_ORDER,
                CLIENT_DURATION,
                "measured by the client",
                of="attempts",
                colours=_COLOURS,
                reading="What is not the server's: `connect`, `network`, `consumer`.",
            ),
            share_stack(
                "Share of attempt time by part",
                client_phase,
                CLIENT_PHASE_ORDER,
                CLIENT_DURATION,
                colours=_COLOURS,
                reading="A growing share of `consumer` is a caller that reads too slowly, not a slow server.",
            ),
        ],
    )


def _network() -> Section:
    return Section(
        "Network",
        [
            time_series(
                "Network time: mean by method",
                [Target(NETWORK.mean(METHOD_LABEL), _METHOD)],
                unit="s",
                formula="mean network time of a request, by how it was measured.",
                reading="Methods do not measure the same: compare each with itself over time.",
                width=8,
            ),
            time_series(
                "Network time: p95 by method",
                [Target(NETWORK.quantile(0.95, METHOD_LABEL), _METHOD)],
                unit="s",
                formula="95th percentile of network time per request, by method, estimated from buckets.",
                reading="Far above the mean: some callers are on bad paths.",
                width=8,
            ),
            quantile_lines(
                _CHUNK,
                reading="Compare with TTFT on the front page; the difference per request is on its span.",
                width=8,
            ),
            distribution(
                Measured("network time", NETWORK, "network time"), reading="Two bands are two kinds of path.", width=24
            ),
        ],
    )
