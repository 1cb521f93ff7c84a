"""Rules for what surrounds the queries: settings, data source, units, places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

Dashboard = dict[str, Any]


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """All panels but the titles of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Dashboard) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every panel with each of its queries."""
    for panel in panels(dashboard):
        for target in panel.get("targets", ()):
            yield panel, target


def top_level(dashboard: Dashboard) -> list[str]:
    """2. Settings that survive provisioning: ``__inputs`` is resolved by the import page only."""
    faults = [f"has {key}" for key in ("id", "__inputs", "__requires") if key in dashboard]
    expected = {"schemaVersion": 42, "editable": False, "graphTooltip": 1, "annotations": {"list": []}}
    faults += [f"{key} is {dashboard.get(key)!r}" for key, value in expected.items() if dashboard.get(key) != value]
    if not 0 < len(dashboard["uid"]) <= 40:
        faults.append("uid has more than 40 characters")
    if not any(
        link["includeVars"] and link["keepTime"] and link["type"] == "dashboards" for link in dashboard["links"]
    ):
        faults.append("no link that keeps variables and time")
    return faults


def data_source(dashboard: Dashboard) -> list[str]:
    """3. A literal data source exists in one Grafana only."""
    places = [panel for panel in panels(dashboard) if "targets" in panel]
    places += [target for _, target in targets(dashboard)]
    places += [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    faults = [f"{place.get('datasource')}" for place in places if place.get("datasource") != wanted]
    if "datasource" not in {variable["name"] for variable in dashboard["templating"]["list"]}:
        faults.append("no variable for the data source")
    return faults


def layout(dashboard: Dashboard) -> list[str]:
    """12. What a reader needs: what it is, in which unit, how it is computed, where it is."""
    faults = []
    for key in ("title", "id"):
        counted = Counter(panel[key] for panel in dashboard["panels"])
        faults += [f"{key} {value} occurs {count} times" for value, count in counted.items() if count > 1]
    for panel in panels(dashboard):
        title = panel["title"]
        if len(re.sub(r"\*\*Formula:\*\*.*", "", panel["description"], flags=re.DOTALL).strip()) < 20:
            faults.append(f"{title}: does not say how to read it")
        if not re.search(r"\*\*Formula:\*\* \S{1,}.*\.", panel["description"]):
            faults.append(f"{title}: no formula")
        if panel["type"] == "text":
            continue
        place = panel["options"].get("yAxis") if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        if not place.get("unit"):
            faults.append(f"{title}: no unit")
        references = [target["refId"] for target in panel["targets"]]
        if not references or len(set(references)) < len(references):
            faults.append(f"{title}: queries {references}")
        if panel["type"] in ("timeseries", "xychart") and not panel["options"]["legend"]["showLegend"]:
            faults.append(f"{title}: no legend")
        if not all(target["legendFormat"] for target in panel["targets"]):
            faults.append(f"{title}: series without a name")
        if stacking(panel) != "none" and panel["fieldConfig"]["defaults"].get("min") != 0:
            faults.append(f"{title}: a stack that does not start at 0")
    faults += [f"{panel['title']}: outside the grid" for panel in dashboard["panels"] if not _inside(panel["gridPos"])]
    for one, other in combinations(dashboard["panels"], 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            faults.append(f"{one['title']} overlaps {other['title']}")
    return faults


def exemplars(dashboard: Dashboard) -> list[str]:
    """13. From a slow moment to the trace of a slow request in one click."""
    return [
        f"{panel['title']} {target['refId']}"
        for panel, target in targets(dashboard)
        if panel["type"] in ("timeseries", "heatmap")
        and (panel["type"] == "heatmap" or panel["fieldConfig"]["defaults"]["unit"] == "s")
        and re.search(r"_(bucket|sum)\{", target["expr"])
        and " offset " not in target["expr"]
        and not target.get("exemplar")
    ]


def xy_charts(dashboard: Dashboard) -> list[str]:
    """XY charts need a plugin version, or Grafana migrates them as older ones, and one joined frame."""
    faults = []
    for panel in panels(dashboard):
        if panel["type"] != "xychart":
            continue
        legends = {target["legendFormat"] for target in panel["targets"]}
        if float(".".join(panel.get("pluginVersion", "0").split(".")[:2])) < 11.1:
            faults.append(f"{panel['title']}: no plugin version")
        if [step["id"] for step in panel["transformations"]] != ["joinByField"]:
            faults.append(f"{panel['title']}: queries are not joined by time")
        for series in panel["options"]["series"]:
            if not {series[axis]["matcher"]["options"] for axis in "xy"} <= legends:
                faults.append(f"{panel['title']}: maps a series that is not queried")
    return faults


def stacking(panel: dict[str, Any]) -> str:
    """How a panel stacks its series: none, normal or percent."""
    custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom", {})
    mode: str = custom.get("stacking", {}).get("mode", "none")
    return mode


def _inside(place: dict[str, int]) -> bool:
    return place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 and place["w"] > 0


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    apart = (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
    return not apart
