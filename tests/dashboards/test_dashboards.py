"""The committed dashboards: as built, and within the rules."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import promql
import promql_parser
import pytest
import rules

from otel_llm.conventions import INSTRUMENTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "grafana-dashboards"
FILES = sorted((FOLDER / "json").glob("*.json"))
DASHBOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
FRONT_PAGE = "otel-llm-latency-throughput"
SHOWN = {
    promql.metrics()[found.node.name].name
    for dashboard in DASHBOARDS.values()
    for _, found in rules.nodes(dashboard, promql_parser.VectorSelector)
}
"""Instruments that a query reads."""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the Grafana Foundation SDK needs Python 3.11")
def test_rule_1_files_are_what_the_program_builds(tmp_path: Path) -> None:
    """1. Committed JSON equals the generator's output byte for byte."""
    program = "import json, build; print(json.dumps(build.rendered()))"
    built = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(built.stdout) == {path.name: path.read_text(encoding="utf-8") for path in FILES}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_rule_15_every_query_parses(name: str) -> None:
    """15. One that does not is an error message in place of a panel."""
    for _, target in rules.targets(DASHBOARDS[name]):
        assert promql.parsed(promql.expression(target)) is not None


def test_there_are_dashboards() -> None:
    assert FRONT_PAGE in DASHBOARDS
    assert {dashboard["uid"] for dashboard in DASHBOARDS.values()} == set(DASHBOARDS)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_keeps_to_the_rule(name: str, rule: rules.Rule) -> None:
    assert rule(DASHBOARDS[name]) == [], rule.__doc__


def panel(dashboard: rules.Dashboard, kind: str) -> dict[str, Any]:
    """The first panel of a kind."""
    found: dict[str, Any] = next(panel for panel in dashboard["panels"] if panel["type"] == kind)
    return found


def rewrite(old: str, new: str) -> Callable[[rules.Dashboard], None]:
    """A fault in the first query that holds ``old``."""

    def spoil(dashboard: rules.Dashboard) -> None:
        target = next(target for _, target in rules.targets(dashboard) if old in target["expr"])
        target["expr"] = target["expr"].replace(old, new)

    return spoil


def query(expr: str) -> Callable[[rules.Dashboard], None]:
    """Another first query."""

    def spoil(dashboard: rules.Dashboard) -> None:
        panel(dashboard, "timeseries")["targets"][0]["expr"] = expr

    return spoil


FILTERS = 'job=~"$job", instance=~"$instance", gen_ai_provider_name=~"$engine", gen_ai_request_model=~"$model"'
TTFT = "gen_ai_server_time_to_first_token_seconds"
KV_CACHE = "otel_llm_engine_kv_cache_usage"
FAULTS: list[tuple[rules.Rule, Callable[[rules.Dashboard], Any]]] = [
    (rules.top_level, lambda d: d.update(id=7)),
    (rules.top_level, lambda d: d.update(__inputs=[])),
    (rules.top_level, lambda d: d.pop("annotations")),
    (rules.top_level, lambda d: d.update(uid="x" * 41)),
    (rules.top_level, lambda d: d.update(links=[])),
    (rules.data_source, lambda d: panel(d, "stat").update(datasource={"type": "prometheus", "uid": "mine"})),
    (rules.data_source, lambda d: panel(d, "stat")["targets"][0].pop("datasource")),
    (rules.variables, lambda d: d["templating"]["list"][1].update(allValue=".+")),
    (rules.variables, lambda d: d["templating"]["list"][1].update(query="label_values(up, job)")),
    (rules.variables, lambda d: d["templating"]["list"].pop()),
    (rules.filters, rewrite('job=~"$job", ', "")),
    (rules.filters, rewrite('gen_ai_request_model=~"$model"', 'gen_ai_request_model="m"')),
    (rules.names, rewrite("gen_ai_server_request_duration_seconds_count", "gen_ai_server_request_duration_count")),
    (rules.names, rewrite('otel_llm_phase="queue"', 'otel_llm_phase="waiting"')),
    (rules.names, rewrite("gen_ai_token_type", "token_type")),
    (rules.names, rewrite("sum by (otel_llm_phase)", "sum by (phase)")),
    (rules.bounds, rewrite('le="$ttft_target"', 'le="0.64"')),
    (rules.bounds, lambda d: d["templating"]["list"][-1]["options"][0].update(value="1")),
    (rules.rates, rewrite("$__rate_interval", "5m")),
    (rules.rates, query(f"sum({TTFT}_count{{{FILTERS}}})")),
    (rules.rates, query(f"rate({TTFT}_count{{{FILTERS}}}[$__rate_interval])")),
    (rules.rates, query(f"sum(deriv({TTFT}_count{{{FILTERS}}}[$__rate_interval]))")),
    (rules.rates, query(f"sum(rate({KV_CACHE}{{{FILTERS}}}[$__rate_interval]))")),
    (rules.rates, query(f"sum({KV_CACHE}{{{FILTERS}}})")),
    (rules.quantiles, query(f"histogram_quantile(0.9, sum(rate({TTFT}_bucket{{{FILTERS}}}[$__rate_interval])))")),
    (rules.quantiles, query(f"histogram_quantile(0.9, sum by (le) (rate({TTFT}_sum{{{FILTERS}}}[$__rate_interval])))")),
    (rules.quantiles, query(f"avg(histogram_quantile(0.9, sum by (le) (rate({TTFT}_bucket[$__rate_interval]))))")),
    (rules.quantiles, query(f"histogram_quantile(0.9, sum by (le) (rate({TTFT}_bucket[$__rate_interval]))) * 2")),
    (rules.means, query(f"avg(rate({TTFT}_sum[$__rate_interval])) / sum(rate({TTFT}_count[$__rate_interval]))")),
    (rules.means, query(f"avg(sum(rate({TTFT}_sum[$__rate_interval])) / sum(rate({TTFT}_count[$__rate_interval])))")),
    (rules.matching, rewrite(" / on () group_left () ", " / ")),
    (rules.layout, lambda d: panel(d, "stat").update(title=panel(d, "timeseries")["title"])),
    (rules.layout, lambda d: panel(d, "stat").update(description="A number.")),
    (rules.layout, lambda d: panel(d, "stat")["fieldConfig"]["defaults"].pop("unit")),
    (rules.layout, lambda d: panel(d, "heatmap")["options"]["yAxis"].pop("unit")),
    (rules.layout, lambda d: panel(d, "stat")["gridPos"].update(w=25)),
    (rules.layout, lambda d: panel(d, "stat")["gridPos"].update(y=9)),
    (rules.layout, lambda d: panel(d, "timeseries")["targets"][1].update(refId="A")),
    (rules.layout, lambda d: panel(d, "timeseries")["options"]["legend"].update(showLegend=False)),
    (rules.layout, lambda d: panel(d, "timeseries")["fieldConfig"]["defaults"].pop("min")),
    (rules.exemplars, lambda d: panel(d, "timeseries")["targets"][0].pop("exemplar")),
    (rules.xy_charts, lambda d: panel(d, "xychart").pop("pluginVersion")),
    (rules.xy_charts, lambda d: panel(d, "xychart").update(transformations=[])),
    (rules.xy_charts, lambda d: panel(d, "xychart")["targets"][0].update(legendFormat="renamed")),
]


@pytest.mark.parametrize(("rule", "spoil"), FAULTS)
def test_rule_finds_the_fault(rule: rules.Rule, spoil: Callable[[rules.Dashboard], Any]) -> None:
    spoiled = copy.deepcopy(DASHBOARDS[FRONT_PAGE])
    spoil(spoiled)
    assert spoiled != DASHBOARDS[FRONT_PAGE]
    assert rule(spoiled)


def test_every_rule_is_shown_to_find_something() -> None:
    assert {rule for rule, _ in FAULTS} == set(rules.RULES)


@pytest.mark.parametrize("name", [name for name, row in INSTRUMENTS.items() if row.name in SHOWN])
def test_rule_6_finds_a_rename_in_the_conventions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """6. Until the dashboards are built again, no query may name what is no longer declared."""
    rows = {key: row if key != name else replace(row, name=f"{name}.renamed") for key, row in INSTRUMENTS.items()}
    monkeypatch.setattr(promql, "INSTRUMENTS", rows)
    assert any(rules.names(dashboard) for dashboard in DASHBOARDS.values())


def test_every_instrument_is_shown_but_these() -> None:
    assert {row.name for row in INSTRUMENTS.values()} - SHOWN == {"otel_llm.engine.sleep_level"}


def test_rule_14_no_unit_is_translated_in_two_ways() -> None:
    """14. The unit "1" becomes ``_ratio`` by OTLP and nothing by scrape, so no instrument has it."""
    assert "1" not in {instrument.unit for instrument in INSTRUMENTS.values()}
