"""The queries of the committed dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from programs import ROOT


class Query(NamedTuple):
    """One target of a panel."""

    dashboard: str
    panel: str
    legend: str
    expr: str


def queries() -> Iterator[Query]:
    for path in sorted((ROOT / "grafana-dashboards" / "json").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield Query(path.stem, panel["title"], target["legendFormat"], target["expr"])


QUERIES = list(queries())


def expression(dashboard: str, panel: str, legend: str) -> str:
    """The query of one series of a panel."""
    found = [q.expr for q in QUERIES if q[:3] == (dashboard, panel, legend)]
    assert len(found) == 1, f"{len(found)} queries {legend!r} in {panel!r}"
    return found[0]


def front_page(panel: str, legend: str) -> str:
    """The query of one series of the front page."""
    return expression("otel-llm-latency-throughput", panel, legend)


def interpolate(expr: str, rate_interval: str, **chosen: str) -> str:
    """Put values in the place of variables, as Grafana does; everything is chosen unless ``chosen`` says otherwise."""
    values = {"__rate_interval": rate_interval, "ttft_target": "0.5", "objective": "0.99", "baseline": "2s", **chosen}
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], ".*"), expr)
