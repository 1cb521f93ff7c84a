"""Targets met and missed, and which phase is to blame."""

from __future__ import annotations

from typing import Any, Final

from page import Section, build_dashboard, choice
from panels import Target, notes, number, plane, time_series
from signals import BAD, CAUSE_LABEL, GOOD, SLO

from otel_llm.report.palette import COLOURS

UID: Final = "otel-llm-slo"
WINDOWS: Final = ("5m", "1h", "6h")
_MET, _MISSED = "#1f9d8a", "#D55E00"

_HOW_TO_READ: Final = """\
A request is **good** if it ended in full and met the TTFT **and** the TPOT target given to \
`otel_llm.instrument(slo={"ttft": ..., "tpot": ...})`: counted request by request in the service, since a joint \
condition cannot be had from two histograms. **Goodput** is good requests per second. The **cause** of a bad one is \
the phase that took most of the time in question. Empty page: no targets are set.
"""


def build() -> dict[str, Any]:
    """Return the dashboard's JSON model."""
    objective = choice(
        "objective",
        "Objective",
        ["0.9", "0.95", "0.99", "0.995", "0.999"],
        "0.99",
        "Share of requests that should be good; the rest is the error budget.",
    )
    sections = [_now(), _over_time(), _causes()]
    description = "Requests that met their TTFT and TPOT targets, the error budget, and the phase that breaks them."
    return build_dashboard(UID, "LLM: SLO and goodput", description, sections, [objective])


def attainment(window: str) -> str:
    """Share of good requests; 0 rather than nothing where all are bad."""
    return f"({GOOD.over(window).rate()} or vector(0)) / {SLO.over(window).rate()}"


def _now() -> Section:
    burn = [
        number(
            f"Burn rate over {window}",
            Target(f"(1 - {attainment(window)}) / (1 - $objective)", "burn rate"),
            unit="short",
            decimals=1,
            formula=f"bad share over {window} / (1 - objective).",
            reading="1 spends exactly the budget over its period; 14.4 spends 2 % of a 30-day budget in an hour.",
            width=4,
        )
        for window in ("1h", "6h")
    ]
    return Section(
        "Now",
        [
            number(
                "Good requests",
                Target(f"({GOOD.rate()} or vector(0)) / {SLO.rate()}", "good"),
                unit="percentunit",
                formula="requests that met all targets / requests judged.",
                reading="Compare with the objective chosen above.",
                width=4,
            ),
            number(
                "Goodput",
                Target(f"{GOOD.rate()} or vector(0)", "goodput"),
                unit="reqps",
                formula="good requests / s.",
                reading="What users get of the throughput.",
                width=4,
            ),
            *burn,
            number(
                "Error budget left (30 days)",
                Target(f"1 - (1 - {attainment('30d')}) / (1 - $objective)", "budget left"),
                unit="percentunit",
                formula="1 - bad share over 30 days / (1 - objective).",
                reading="Negative: overspent. Needs 30 days of history to mean what it says.",
                width=8,
            ),
            notes(
                "How to read this page",
                _HOW_TO_READ,
                formula="good = ended in full, TTFT <= target and TPOT <= target.",
                height=4,
            ),
        ],
    )


def _over_time() -> Section:
    return Section(
        "Over time",
        [
            time_series(
                "Requests/s: good and bad",
                [Target(f"{GOOD.rate()} or vector(0)", "good"), Target(f"{BAD.rate()} or vector(0)", "bad")],
                unit="reqps",
                stacked="normal",
                colours={"good": _MET, "bad": _MISSED},
                formula="judged requests / s, by whether all targets were met.",
                reading="The whole is throughput, the lower part goodput.",
            ),
            time_series(
                "Burn rate by window",
                [Target(f"(1 - {attainment(window)}) / (1 - $objective)", window) for window in WINDOWS],
                unit="short",
                formula="bad share over the window / (1 - objective).",
                reading="An alert needs a short and a long window above its threshold: the long one shows that it "
                "matters, the short one that it still goes on.",
            ),
        ],
    )


def _causes() -> Section:
    causes = [Target(BAD.rate(CAUSE_LABEL), f"{{{{{CAUSE_LABEL}}}}}")]
    return Section(
        "What breaks it",
        [
            time_series(
                "Bad requests by cause",
                causes,
                unit="reqps",
                stacked="normal",
                colours=COLOURS,
                formula="bad requests / s, by the phase that took most of the time in question.",
                reading="`queue`: capacity. `prefill`: long prompts. `decode`: too large a batch for the TPOT target.",
            ),
            plane(
                "Goodput against throughput",
                [(Target(SLO.rate(), "requests/s"), Target(f"{GOOD.rate()} or vector(0)", "goodput"))],
                unit="reqps",
                x_title="requests/s",
                x_unit="reqps",
                colours={"goodput": _MET},
                formula="good requests/s against judged requests/s.",
                reading="On the diagonal all are good. Where it bends down, more load means fewer good answers.",
                height=9,
            ),
        ],
    )
