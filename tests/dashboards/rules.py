"""
What a dashboard has to keep to, as functions that return the faults they find.

Each rule is there because dashboards without it were seen to show nothing, or
something wrong; the docstring says what it prevents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import promql_parser
from panel_rules import Dashboard, data_source, exemplars, layout, stacking, targets, top_level, xy_charts
from promql import Found, bare, expression, grouping, metrics, parsed, walk

from otel_llm.conventions import ATTRIBUTES, RESOURCE

Rule = Callable[[Dashboard], list[str]]

TARGET_LABELS: Final = {"job", "instance", "le", "service_instance_id", *(name.replace(".", "_") for name in RESOURCE)}
CLIENT_PAGES: Final = {"otel-llm-network": "client_"}
"""Dashboards of clients: their services are not the servers', so the variables have a prefix."""
FIXED_WINDOWS: Final = {"otel-llm-slo"}
"""Dashboards whose windows are part of what they say: burn rates and error budgets."""


def nodes(dashboard: Dashboard, kind: type) -> Iterator[tuple[str, Found]]:
    """Every node of a kind in the dashboard's queries, with a name for messages."""
    for panel, target in targets(dashboard):
        for found in walk(parsed(expression(target))):
            if isinstance(found.node, kind):
                yield f"{panel['title']} {target['refId']}", found


def variables(dashboard: Dashboard) -> list[str]:
    """4. ``.*`` matches the absence of a label too: VictoriaMetrics has neither job nor instance."""
    faults = []
    by_name = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    side = CLIENT_PAGES.get(dashboard["uid"], "")
    for name in (f"{side}job", f"{side}instance", "engine", "model"):
        variable = by_name.get(name, {})
        wanted = {"type": "query", "multi": True, "includeAll": True, "allValue": ".*", "refresh": 2}
        faults += [f"{name}: {key}" for key, value in wanted.items() if variable.get(key) != value]
        source = re.match(r"label_values\((\w+)", variable.get("query", ""))
        if source is None or source[1] not in metrics():
            faults.append(f"{name} is not read from a metric of ours")
    used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for _, target in targets(dashboard))))
    faults += [f"{name} is not declared" for name in used - by_name.keys() if not name.startswith("__")]
    faults += [f"{name} is not used" for name in by_name.keys() - used - {"datasource"}]
    return faults


def filters(dashboard: Dashboard) -> list[str]:
    """5. A selector without the variables mixes the services that share a backend."""
    faults = []
    for where, found in nodes(dashboard, promql_parser.VectorSelector):
        instrument = metrics().get(found.node.name)
        side = CLIENT_PAGES.get(dashboard["uid"], "")
        wanted = {"job": f"${side}job", "instance": f"${side}instance"}
        if instrument is not None and "gen_ai.request.model" in instrument.attributes:
            wanted |= {"gen_ai_provider_name": "$engine", "gen_ai_request_model": "$model"}
        has = {m.name: m.value for m in found.node.matchers.matchers if m.op == promql_parser.MatchOp.Re}
        faults += [f"{where}: no {label}" for label, value in wanted.items() if has.get(label) != value]
    return faults


def names(dashboard: Dashboard) -> list[str]:
    """6. A panel on a renamed metric, label or value is blank without a word."""
    faults = []
    attributes = {name.replace(".", "_"): row for name, row in ATTRIBUTES.items()}
    for where, found in nodes(dashboard, promql_parser.VectorSelector):
        instrument = metrics().get(found.node.name)
        if instrument is None:
            faults.append(f"{where}: no metric {found.node.name}")
            continue
        own = {attribute.replace(".", "_") for attribute in instrument.attributes}
        for matcher in found.node.matchers.matchers:
            if matcher.name not in own | TARGET_LABELS:
                faults.append(f"{where}: {found.node.name} has no label {matcher.name}")
            values = attributes[matcher.name].values if matcher.name in attributes else ()
            if matcher.op == promql_parser.MatchOp.Equal and values and matcher.value not in values:
                faults.append(f"{where}: {matcher.name} is never {matcher.value}")
    for where, found in nodes(dashboard, promql_parser.AggregateExpr):
        selected = [f.node for f in walk(found.node) if isinstance(f.node, promql_parser.VectorSelector)]
        for label in grouping(found.node) or ():
            for selector in selected:
                instrument = metrics().get(selector.name)
                own = {a.replace(".", "_") for a in instrument.attributes} if instrument else set()
                if label not in own | TARGET_LABELS:
                    faults.append(f"{where}: grouped by {label}, which {selector.name} does not have")
    return faults


def bounds(dashboard: Dashboard) -> list[str]:
    """7. A bound that is no bucket's matches nothing; ``1`` is stored as ``1.0`` by scrapes only."""
    faults = []
    choices = {
        f"${variable['name']}": [option["value"] for option in variable["options"]]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "custom"
    }
    for where, found in nodes(dashboard, promql_parser.VectorSelector):
        instrument = metrics().get(found.node.name)
        for matcher in found.node.matchers.matchers:
            if matcher.name != "le" or instrument is None:
                continue
            for value in choices.get(matcher.value, [matcher.value]):
                if value not in map(repr, instrument.buckets) or float(value).is_integer():
                    faults.append(f"{where}: le={value} is no safe bound of {instrument.name}")
    return faults


def rates(dashboard: Dashboard) -> list[str]:
    """8. A bare counter only grows, a gauge has no rate, and a fixed window is empty or blunt at other zooms."""
    faults = []
    for where, found in nodes(dashboard, promql_parser.VectorSelector):
        if not found.around or not isinstance(found.around[-1], promql_parser.MatrixSelector):
            faults.append(f"{where}: {found.node.name} without a window")
    for where, found in nodes(dashboard, promql_parser.MatrixSelector):
        if found.node.range.total_seconds() != 61 and dashboard["uid"] not in FIXED_WINDOWS:
            faults.append(f"{where}: window {found.node.range}")
        *_, outer, call = (None, *found.around)
        instrument = metrics().get(found.node.vector_selector.name)
        gauge = instrument is not None and instrument.kind == "observable_gauge"
        allowed = ("avg_over_time",) if gauge else ("rate", "increase")
        if not isinstance(call, promql_parser.Call) or call.func.name not in allowed:
            faults.append(f"{where}: none of {allowed} around {found.node}")
        elif not isinstance(outer, promql_parser.AggregateExpr):
            faults.append(f"{where}: rate that is not aggregated")
    return faults


def quantiles(dashboard: Dashboard) -> list[str]:
    """9. Percentiles do not add up, and without ``le`` there is nothing to take one of."""
    faults = []
    for where, found in nodes(dashboard, promql_parser.Call):
        if found.node.func.name != "histogram_quantile":
            continue
        buckets = found.node.args[1]
        if not isinstance(buckets, promql_parser.AggregateExpr) or str(buckets.op) != "sum":
            faults.append(f"{where}: not over a sum")
        elif "le" not in (grouping(buckets) or ()):
            faults.append(f"{where}: not by le")
        selected = [f.node.name for f in walk(buckets) if isinstance(f.node, promql_parser.VectorSelector)]
        if not all(name.endswith("_bucket") for name in selected):
            faults.append(f"{where}: not over buckets")
        if any(isinstance(outer, (promql_parser.BinaryExpr, promql_parser.AggregateExpr)) for outer in found.around):
            faults.append(f"{where}: calculates with a quantile")
    for panel, target in targets(dashboard):
        if stacking(panel) != "none" and "histogram_quantile" in target["expr"]:
            faults.append(f"{panel['title']}: stacks quantiles")
    return faults


def means(dashboard: Dashboard) -> list[str]:
    """10. A mean is a ratio of sums; a mean of ratios weighs idle instances like busy ones."""
    faults = []
    for where, found in nodes(dashboard, promql_parser.BinaryExpr):
        if str(found.node.op) != "/":
            continue
        sides = [bare(found.node.lhs), bare(found.node.rhs)]
        selected = [
            [f.node.name for f in walk(side) if isinstance(f.node, promql_parser.VectorSelector)] for side in sides
        ]
        if selected[0] and selected[1] and selected[0][0].endswith("_sum") and selected[1][0].endswith("_count"):
            ratio = all(isinstance(side, promql_parser.AggregateExpr) and str(side.op) == "sum" for side in sides)
            if not ratio or any(isinstance(outer, promql_parser.AggregateExpr) for outer in found.around):
                faults.append(f"{where}: not a ratio of sums")
    return faults


def matching(dashboard: Dashboard) -> list[str]:
    """11. Prometheus returns nothing where the labels of both sides differ; VictoriaMetrics hides that."""
    faults = []
    for where, found in nodes(dashboard, promql_parser.BinaryExpr):
        left, right = grouping(found.node.lhs), grouping(found.node.rhs)
        if left is None or right is None or left == right:
            continue
        modifier = found.node.modifier
        explicit = modifier is not None and modifier.matching is not None
        many = modifier is not None and modifier.card != promql_parser.VectorMatchCardinality.OneToOne
        if not (explicit and many):
            faults.append(f"{where}: matches {sorted(left)} with {sorted(right)}")
    return faults


RULES: Final[tuple[Rule, ...]] = (
    top_level,
    data_source,
    variables,
    filters,
    names,
    bounds,
    rates,
    quantiles,
    means,
    matching,
    layout,
    exemplars,
    xy_charts,
)
