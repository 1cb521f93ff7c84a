"""What clients see: the way to the server and back, beside the server's own time."""

from __future__ import annotations

from typing import Any, Final

from page import Section, build_dashboard
from panels import QUANTILE_COLOURS, Target, density, notes, number, time_series
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
_MEASURED: Final = "measured by the client"
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
    parts = [
        Target(f"{client_phase(name).sum_rate()} / {CLIENT_DURATION.count_rate()}", name) for name in CLIENT_PHASE_ORDER
    ]
    all_parts = CLIENT_DURATION.sum_rate()
    shares = [Target(f"{client_phase(name).sum_rate()} / {all_parts}", name) for name in CLIENT_PHASE_ORDER]
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
            number(
                "p95 attempt",
                Target(CLIENT_DURATION.quantile(0.95), "attempt"),
                unit="s",
                formula="95th percentile of the attempt's duration, estimated from buckets.",
                reading="What callers wait for a whole answer.",
                width=6,
            ),
            number(
                "p95 first chunk",
                Target(FIRST_CHUNK.quantile(0.95), "first chunk"),
                unit="s",
                formula="95th percentile of the time to the first token-bearing event, estimated from buckets.",
                reading="TTFT as the caller sees it.",
                width=6,
            ),
            number(
                "Failed attempts",
                Target(f"({CLIENT_FAILED.count_rate()} or vector(0)) / {CLIENT_DURATION.count_rate()}", "failed"),
                unit="percentunit",
                formula="attempts with an error type / all attempts.",
                reading="Includes those that no server ever saw.",
                width=6,
            ),
            notes("How to read this page", _HOW_TO_READ, formula="attempt = sum of its parts.", height=4),
            time_series(
                "Mean attempt by part",
                [*parts, Target(CLIENT_DURATION.mean(), _MEASURED)],
                unit="s",
                stacked="normal",
                colours=_COLOURS,
                dashed=_MEASURED,
                formula="per part: sum of its time / number of attempts. Dashed: mean duration of an attempt.",
                reading="What is not the server's: `connect`, `network`, `consumer`.",
            ),
            time_series(
                "Share of attempt time by part",
                shares,
                unit="percentunit",
                stacked="percent",
                colours=_COLOURS,
                formula="sum of the part's time / sum of the attempts' durations.",
                reading="A growing share of `consumer` is a caller that reads too slowly, not a slow server.",
            ),
        ],
    )


def _network() -> Section:
    quantiles = [Target(FIRST_CHUNK.quantile(int(text[1:]) / 100), text) for text in QUANTILE_COLOURS]
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
            time_series(
                "First chunk: quantiles",
                quantiles,
                unit="s",
                colours=QUANTILE_COLOURS,
                formula="quantiles of the time to the first token-bearing event, estimated from buckets.",
                reading="Compare with TTFT on the front page; the difference per request is on its span.",
                width=8,
            ),
            density(
                "Network time: distribution",
                Target(NETWORK.buckets(), "{{le}}"),
                unit="s",
                formula="requests per bucket of network time in each window.",
                reading="Two bands are two kinds of path.",
                width=24,
            ),
        ],
    )
