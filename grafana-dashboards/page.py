"""A dashboard out of panels: grid, variables, links."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from panels import SOURCE, WIDTH, Built, Panel
from signals import DURATION, SERVER, Metric, label, prometheus_name

TAG: Final = "otel-llm"


@dataclass
class Section:
    """A titled row of panels, which flow from left to right."""

    title: str
    panels: Sequence[Panel]


def build_dashboard(
    uid: str,
    title: str,
    description: str,
    sections: Sequence[Section],
    variables: Sequence[Any] = (),
    source: Metric = DURATION,
    side: str = SERVER,
) -> dict[str, Any]:
    """
    Return the classic JSON model, which Grafana imports and provisions.

    ``source`` is the histogram whose series offer the jobs, instances, engines and models, ``side`` whose they are.
    """
    with warnings.catch_warnings():
        # The SDK prefers its newer schema, which older Grafana cannot import.
        warnings.simplefilter("ignore")
        builder = dashboard.Dashboard(title)
    builder.uid(uid).description(description).tags([TAG]).readonly().time("now-30m", "now").refresh("30s")
    builder.tooltip(models.DashboardCursorSync.CROSSHAIR).timezone("browser")
    links = dashboard.DashboardLink("otel-llm").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    builder.link(links.as_dropdown(True).include_vars(True).keep_time(True))
    for variable in (*_common_variables(source, side), *variables):
        builder.with_variable(variable)
    y, identity = 0, 1
    for section in sections:
        row = dashboard.Row(section.title).id(identity).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=y))
        builder.with_row(row)
        x, y, tallest, identity = 0, y + 1, 0, identity + 1
        for panel in section.panels:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            builder.with_panel(Built(panel.build(identity, x, y)))
            x, tallest, identity = x + panel.width, max(tallest, panel.height), identity + 1
        y += tallest
    model: dict[str, Any] = builder.build().to_json()
    model["annotations"] = {"list": []}
    for link in model["links"]:
        # The SDK hides links in a menu that only the newest Grafana has.
        link.placement = None
    model["schemaVersion"] = 42
    return model


def choice(name: str, title: str, values: Sequence[str] | Mapping[str, str], default: str, description: str) -> Any:
    """A variable with a fixed list of values, or of texts and the values that they stand for."""
    texts = values if isinstance(values, Mapping) else dict(zip(values, values, strict=True))
    variable = dashboard.CustomVariable(name).label(title).description(description)
    variable.values(",".join(value if text == value else f"{text} : {value}" for text, value in texts.items()))
    variable.allow_custom_value(False)
    options = [
        models.VariableOption(text=text, value=value, selected=value == default) for text, value in texts.items()
    ]
    return variable.options(options).current(next(option for option in options if option.selected))


def found(name: str, title: str, source: Metric, key: str, matchers: str, *, multi: bool = True) -> Any:
    """A variable whose values are those of a label, beside "All"."""
    series = f"{prometheus_name(source.instrument)}_count{matchers}"
    variable = dashboard.QueryVariable(name).label(title).datasource(SOURCE)
    variable.query(f"label_values({series}, {key})").refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.multi(multi).include_all(True).all_value(".*").sort(models.VariableSort.ALPHABETICAL_ASC)
    text, value = (["All"], ["$__all"]) if multi else ("All", "$__all")
    return variable.current(models.VariableOption(text=text, value=value, selected=True))


def _common_variables(metric: Metric, side: str) -> list[Any]:
    whose = "Client " if side else ""
    chain = [(f"{side}{name}", name, f"{whose}{name}".capitalize()) for name in ("job", "instance")]
    chain += [("engine", label("gen_ai.provider.name"), "Engine"), ("model", label("gen_ai.request.model"), "Model")]
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    variables: list[Any] = [source]
    chosen: list[str] = []
    for name, key, title in chain:
        variables.append(found(name, title, metric, key, f"{{{', '.join(chosen)}}}" if chosen else ""))
        chosen.append(f'{key}=~"${name}"')
    return variables
