"""The rules for Prometheus: as built, accepted by promtool, and every alert both fires and stays silent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from programs import ROOT
from queries import QUERIES, interpolate

from otel_llm.dashboards import native_histograms

RULES = ROOT / "integrations" / "prometheus" / "otel-llm.rules.yml"
RUNBOOK = ROOT / "docs" / "runbooks.md"
FILES = sorted(RULES.parent.glob("*.rules.yml"))
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]

MODEL = 'job="a", gen_ai_request_model="m"'
TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
PHASE = "otel_llm_request_phase_duration_seconds_sum"
DURATION = "gen_ai_server_request_duration_seconds_sum"
SLO = "otel_llm_request_slo_total"

ALL_BURNS = ["5m 1h", "30m 6h", "2h 1d"]


class Case(NamedTuple):
    """Series by minute, and the alerts that fire after 90 minutes (by their windows, if they have any)."""

    name: str
    series: dict[str, str]
    alert: str
    firing: list[str]
    at: str = "90m"


def latency(metric: str, bound: str, inside: int) -> dict[str, str]:
    """60 requests per minute, so many of them within the bound."""
    return {
        f'{metric}_bucket{{{MODEL}, le="{bound}"}}': f"0+{inside}x120",
        f"{metric}_count{{{MODEL}}}": "0+60x120",
    }


CASES = [
    Case("a third is late", latency(TTFT, "0.5", 40), "OtelLLMTTFTBudgetBurn", ALL_BURNS),
    Case("one in ten is late", latency(TTFT, "0.5", 54), "OtelLLMTTFTBudgetBurn", ["30m 6h", "2h 1d"]),
    Case("none is late", latency(TTFT, "0.5", 60), "OtelLLMTTFTBudgetBurn", []),
    Case("a third is slow", latency(TPOT, "0.05", 40), "OtelLLMTPOTBudgetBurn", ALL_BURNS),
    Case("none is slow", latency(TPOT, "0.05", 60), "OtelLLMTPOTBudgetBurn", []),
    Case(
        "a third is bad",
        {
            f'{SLO}{{{MODEL}, otel_llm_slo_met="true"}}': "0+40x120",
            f'{SLO}{{{MODEL}, otel_llm_slo_met="false"}}': "0+20x120",
        },
        "OtelLLMGoodputBudgetBurn",
        ALL_BURNS,
    ),
    Case(
        "all are bad",
        {f'{SLO}{{{MODEL}, otel_llm_slo_met="false", otel_llm_slo_cause="queue"}}': "0+60x120"},
        "OtelLLMGoodputBudgetBurn",
        ALL_BURNS,
    ),
    Case("all are good", {f'{SLO}{{{MODEL}, otel_llm_slo_met="true"}}': "0+60x120"}, "OtelLLMGoodputBudgetBurn", []),
    Case(
        "more waiting than work",
        {
            f'{PHASE}{{{MODEL}, otel_llm_phase="queue"}}': "0+90x120",
            f'{PHASE}{{{MODEL}, otel_llm_phase="decode"}}': "0+60x120",
        },
        "OtelLLMQueueDominatesLatency",
        [""],
    ),
    Case(
        "more work than waiting",
        {
            f'{PHASE}{{{MODEL}, otel_llm_phase="queue"}}': "0+60x120",
            f'{PHASE}{{{MODEL}, otel_llm_phase="decode"}}': "0+90x120",
        },
        "OtelLLMQueueDominatesLatency",
        [],
    ),
    Case(
        "a phase is missing",
        {f'{PHASE}{{{MODEL}, otel_llm_phase="decode"}}': "0+90x120", f"{DURATION}{{{MODEL}}}": "0+100x120"},
        "OtelLLMTimeUnaccounted",
        [""],
    ),
    Case(
        "phases add up",
        {f'{PHASE}{{{MODEL}, otel_llm_phase="decode"}}': "0+100x120", f"{DURATION}{{{MODEL}}}": "0+100x120"},
        "OtelLLMTimeUnaccounted",
        [],
    ),
    Case(
        "spans are lost",
        {'otel_llm_telemetry_dropped_total{job="a", otel_llm_signal="spans"}': "0+6x120"},
        "OtelLLMTelemetryLost",
        [""],
    ),
    Case(
        "spans were lost long ago",
        {'otel_llm_telemetry_dropped_total{job="a", otel_llm_signal="spans"}': "0+6x30 180x90"},
        "OtelLLMTelemetryLost",
        [],
    ),
    Case(
        "a hook fails",
        {'otel_llm_telemetry_errors_total{job="a", otel_llm_fault_place="emit"}': "0+1x120"},
        "OtelLLMTelemetryErrors",
        [""],
    ),
    Case(
        "no hook fails",
        {'otel_llm_telemetry_errors_total{job="a", otel_llm_fault_place="emit"}': "3x120"},
        "OtelLLMTelemetryErrors",
        [],
    ),
    Case(
        "a service has stopped",
        {'otel_llm_telemetry_exported_total{job="a", otel_llm_signal="metrics"}': "0+60x60 _x60"},
        "OtelLLMTelemetrySilent",
        [""],
    ),
    Case(
        "a service reports",
        {'otel_llm_telemetry_exported_total{job="a", otel_llm_signal="metrics"}': "0+60x120"},
        "OtelLLMTelemetrySilent",
        [],
    ),
    Case(
        "a service stopped long ago",
        {'otel_llm_telemetry_exported_total{job="a", otel_llm_signal="metrics"}': "0+60x10 _x110"},
        "OtelLLMTelemetrySilent",
        [],
    ),
]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the Grafana Foundation SDK needs Python 3.11")
def test_files_are_what_the_program_builds() -> None:
    program = "import json, build; print(json.dumps(build.rules()))"
    built = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "grafana-dashboards", capture_output=True, text=True, check=True
    )
    assert json.loads(built.stdout) == {path.name: path.read_text(encoding="utf-8") for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rule_17_promtool_accepts_the_rules(promtool: Path, path: Path) -> None:
    """17. What promtool refuses, Prometheus does not load."""
    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("form", [str, native_histograms], ids=["explicit", "native"])
def test_rule_15_promtool_accepts_every_query_of_the_dashboards(
    promtool: Path, tmp_path: Path, form: Callable[[str], str]
) -> None:
    """15. Prometheus' own parser, which is stricter than others."""
    rules = [{"record": f"query:{n}", "expr": interpolate(form(query.expr), "5m")} for n, query in enumerate(QUERIES)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout


def firing(promtool: Path, folder: Path, case: Case) -> list[str]:
    """Windows of the alerts that fire, read from what promtool says instead of the none that it is told to expect."""
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": []}],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return []
    assert "got:" in output, output
    found = re.findall(r'Labels:\{(alertname="[^}]*)\}', output.split("got:")[1])
    assert found, output
    return [
        " ".join(re.findall(r'(?:short|long)="(\w+)"', labels)[::-1]) for labels in found if f'"{case.alert}"' in labels
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.name}")
def test_rule_17_alert_fires_when_it_should(promtool: Path, tmp_path: Path, case: Case) -> None:
    assert sorted(firing(promtool, tmp_path, case)) == sorted(case.firing)


def test_rule_17_every_alert_is_shown_to_fire_and_to_stay_silent() -> None:
    names = {rule["alert"] for rule in ALERTS}
    assert {case.alert for case in CASES if case.firing} == names
    assert {case.alert for case in CASES if not case.firing} == names


def test_rule_17_every_alert_has_a_runbook_that_names_panels() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    sections = {title.lower(): body for title, body in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
    panels = {query.panel for query in QUERIES}
    for rule in ALERTS:
        page, anchor = rule["annotations"]["runbook"].split("#")
        assert ROOT / page == RUNBOOK
        assert anchor == rule["alert"].lower()
        named = re.findall(r"\*\*([^*]+)\*\*", sections[anchor])
        assert named, f"{anchor} names no panel"
        assert set(named) <= panels, set(named) - panels
