"""
Recording and alerting rules for Prometheus, from the same signals as the dashboards.

Burn rates by several windows at once are explained in the Site Reliability
Workbook, https://sre.google/workbook/alerting-on-slos/ (chapter 5, section 6).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import signals
from signals import DROPPED, DURATION, ERRORS, EXPORTED, FIRST_TOKEN, GOOD, MODEL_LABEL, PER_OUTPUT_TOKEN, PHASE, SLO

OBJECTIVE: Final = 0.99
TTFT_BOUND: Final = "0.5"
TPOT_BOUND: Final = "0.05"
"""Targets in seconds. They must be bounds of their histograms."""

SERVICE: Final = ("job", "service_name")
"""What names a service: the first on Prometheus, the second on VictoriaMetrics."""
PER_MODEL: Final = (*SERVICE, MODEL_LABEL)
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
RUNBOOK: Final = "docs/runbooks.md"

_OF_SERVICE: Final = "{{ $labels.job }}{{ $labels.service_name }}"
_OF_MODEL: Final = f"{_OF_SERVICE}, model {{{{ $labels.{MODEL_LABEL} }}}}"

Rule = dict[str, Any]


class Burn(NamedTuple):
    """Spending the budget this many times too fast, seen over both windows."""

    factor: float
    short: str
    long: str
    lasting: str
    severity: str


BURNS: Final = (
    Burn(14.4, "5m", "1h", "2m", "critical"),
    Burn(6, "30m", "6h", "15m", "critical"),
    Burn(3, "2h", "1d", "1h", "warning"),
    Burn(1, "6h", "3d", "3h", "warning"),
)


class Objective(NamedTuple):
    """What share of requests may be bad, and how bad ones are counted."""

    name: str
    alert: str
    bad: str

    def bad_share(self, window: str) -> str:
        """Share of bad requests per model."""
        if self.name == "goodput":
            judged = SLO.everywhere().over(window).rate(*PER_MODEL)
            good = GOOD.everywhere().over(window).rate(*PER_MODEL)
            # Where all are bad there is no good series to divide.
            return f"1 - ({good} or 0 * {judged}) / {judged}"
        metric, bound = (FIRST_TOKEN, TTFT_BOUND) if self.name == "ttft" else (PER_OUTPUT_TOKEN, TPOT_BOUND)
        return f"1 - {metric.everywhere().over(window).share_within(bound, *PER_MODEL)}"

    def record(self, window: str) -> str:
        """Name of the recorded share."""
        return f"job_model:otel_llm_{self.name}_bad:ratio_rate{window}"


OBJECTIVES: Final = (
    Objective("ttft", "OtelLLMTTFTBudgetBurn", f"slower to the first token than {TTFT_BOUND} s"),
    Objective("tpot", "OtelLLMTPOTBudgetBurn", f"slower per output token than {TPOT_BOUND} s"),
    Objective("goodput", "OtelLLMGoodputBudgetBurn", "not good (failed, or missed a target of the service)"),
)


def build() -> dict[str, Any]:
    """Return the rules file as data."""
    groups = []
    for objective in OBJECTIVES:
        records = [{"record": objective.record(window), "expr": objective.bad_share(window)} for window in WINDOWS]
        groups.append({"name": f"otel-llm-{objective.name}", "interval": "30s", "rules": records + _burns(objective)})
    groups.append({"name": "otel-llm-phases", "interval": "30s", "rules": _phases()})
    groups.append({"name": "otel-llm-telemetry", "interval": "30s", "rules": _telemetry()})
    return {"groups": groups}


def _burns(objective: Objective) -> list[Rule]:
    budget = round(1 - OBJECTIVE, 6)
    return [
        _alert(
            objective.alert,
            f"{objective.record(burn.short)} > {burn.factor} * {budget} "
            f"and {objective.record(burn.long)} > {burn.factor} * {budget}",
            lasting=burn.lasting,
            severity=burn.severity,
            labels={"short": burn.short, "long": burn.long},
            summary=f"{_OF_MODEL}: the error budget is being spent {burn.factor:g} times too fast",
            description=f"{{{{ $value | humanizePercentage }}}} of requests over {burn.short}, and as many over "
            f"{burn.long}, were {objective.bad}; the objective allows {budget:.0%}.",
        )
        for burn in BURNS
    ]


def _phases() -> list[Rule]:
    phases, durations = PHASE.everywhere().over("5m"), DURATION.everywhere().over("5m")
    mean = "job_model_phase:otel_llm_phase_seconds:mean_rate5m"
    by_phase = phases.sum_rate(*PER_MODEL, signals.PHASE_LABEL)
    requests = durations.count_rate(*PER_MODEL)
    queue = phases.where("otel_llm.phase", "queue")
    return [
        {"record": mean, "expr": f"{by_phase} / on ({', '.join(PER_MODEL)}) group_left () {requests}"},
        {"record": "job_model_phase:otel_llm_requests_in_phase:avg5m", "expr": by_phase},
        _alert(
            "OtelLLMQueueDominatesLatency",
            f"{queue.sum_rate(*PER_MODEL)} / {phases.sum_rate(*PER_MODEL)} > 0.5",
            lasting="10m",
            severity="warning",
            summary=f"{_OF_MODEL}: requests wait more than they are worked on",
            description="{{ $value | humanizePercentage }} of the time of all requests is spent in the queue.",
        ),
        _alert(
            "OtelLLMTimeUnaccounted",
            f"abs(1 - {phases.sum_rate(*PER_MODEL)} / {durations.sum_rate(*PER_MODEL)}) > 0.01",
            lasting="10m",
            severity="warning",
            summary=f"{_OF_MODEL}: phases do not add up to the request duration",
            description="{{ $value | humanizePercentage }} of request time is missing from the phases or too much in "
            "them: the phase panels cannot be trusted.",
        ),
    ]


def _telemetry() -> list[Rule]:
    lost = DROPPED.everywhere().over("10m").rate(*SERVICE, signals.label("otel_llm.signal"))
    errors = ERRORS.everywhere().over("10m").rate(*SERVICE, signals.label("otel_llm.fault.place"))
    exported = EXPORTED.everywhere()
    return [
        _alert(
            "OtelLLMTelemetryLost",
            f"{lost} > 0",
            lasting="5m",
            severity="warning",
            summary=f"{_OF_SERVICE}: telemetry is being lost",
            description="{{ $value | humanize }} {{ $labels.otel_llm_signal }} per second do not reach the collector.",
        ),
        _alert(
            "OtelLLMTelemetryErrors",
            f"{errors} > 0",
            lasting="5m",
            severity="warning",
            summary=f"{_OF_SERVICE}: otel-llm swallows errors of its own",
            description="{{ $value | humanize }} errors per second in {{ $labels.otel_llm_fault_place }}; "
            "requests are not affected, their telemetry is.",
        ),
        _alert(
            "OtelLLMTelemetrySilent",
            f"{exported.seen_within('1h', *SERVICE)} unless {exported.seen_within('10m', *SERVICE)}",
            lasting="5m",
            severity="warning",
            summary=f"{_OF_SERVICE}: no telemetry for ten minutes",
            description="The service reported within the last hour and has stopped: it is down, cannot reach the "
            "collector, or sends metrics in a form that the database drops (delta temporality).",
        ),
    ]


def _alert(
    name: str,
    expr: str,
    *,
    lasting: str,
    severity: str,
    summary: str,
    description: str,
    labels: dict[str, str] | None = None,
) -> Rule:
    return {
        "alert": name,
        "expr": expr,
        "for": lasting,
        "labels": {"severity": severity, **(labels or {})},
        "annotations": {"summary": summary, "description": description, "runbook": f"{RUNBOOK}#{name.lower()}"},
    }
