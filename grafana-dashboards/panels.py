"""Panels in one style: every one says its formula and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, text, timeseries, xychart
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import text as text_models
from grafana_foundation_sdk.models import xychart as xychart_models

WIDTH: Final = 24
"""Columns of Grafana's grid."""

XY_SINCE: Final = "11.1.0"
"""
First Grafana with this form of the XY chart's options.

Without a plugin version Grafana takes them for the older form and breaks them.
"""

SOURCE: Final = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

REFERENCE_COLOUR: Final = "text"
_HEAT: Final = heatmap_models.HeatmapColorOptions(
    mode=heatmap_models.HeatmapColorMode.SCHEME,
    scheme="Oranges",
    fill="dark-orange",
    scale=heatmap_models.HeatmapColorScale.EXPONENTIAL,
    exponent=0.5,
    steps=64,
)
_HEAT_TOOLTIP: Final = heatmap_models.HeatmapTooltip(mode=kinds.TooltipDisplayMode.SINGLE, y_histogram=True)
QUANTILE_COLOURS: Final = {"p50": "#56B4E9", "p95": "#E69F00", "p99": "#D55E00"}


T = TypeVar("T")


class Built(cog.Builder[T]):
    """A ready model where the SDK wants a builder of one."""

    def __init__(self, model: T) -> None:
        self._model = model

    def build(self) -> T:
        """Return the model."""
        return self._model


class Target(NamedTuple):
    """A query of a panel and the name of its series."""

    expr: str
    legend: str


@dataclass
class Panel:
    """A panel, its size in grid cells, and what its description says."""

    builder: Any
    width: int
    height: int
    title: str
    formula: str
    reading: str
    targets: Sequence[Target] = ()
    instant: bool = False
    exemplars: bool = False
    """Whether dots of single requests, which open their traces, make sense on its axis."""

    def build(self, number: int, x: int, y: int) -> models.Panel:
        """Place it in the grid."""
        description = f"{self.reading}\n\n**Formula:** {self.formula}"
        builder = self.builder.id(number).title(self.title).description(description)
        builder.grid_pos(models.GridPos(h=self.height, w=self.width, x=x, y=y))
        if self.targets:
            builder.datasource(SOURCE)
        for index, target in enumerate(self.targets):
            builder.with_target(self._query(target, chr(ord("A") + index)))
        panel: models.Panel = builder.build()
        if panel.type_val == "xychart":
            panel.plugin_version = XY_SINCE
        return panel

    def _query(self, target: Target, reference: str) -> prometheus.Dataquery:
        query = prometheus.Dataquery().ref_id(reference).expr(target.expr).legend_format(target.legend)
        query.datasource(SOURCE)
        if isinstance(self.builder, heatmap.Panel):
            query.format(prometheus_models.PromQueryFormat.HEATMAP)
        # Exemplars have the time at which they happened, which an offset does not move.
        if self.exemplars and " offset " not in target.expr:
            query.exemplar(True)
        return query.instant() if self.instant else query.range()


def time_series(
    title: str,
    targets: Sequence[Target],
    *,
    unit: str,
    formula: str,
    reading: str,
    stacked: str = "",
    colours: Mapping[str, str] | None = None,
    dashed: str = "",
    none_means: str = "",
    width: int = 12,
    height: int = 9,
) -> Panel:
    """``stacked`` is "normal", "percent" or empty; ``dashed`` names a series drawn as reference line."""
    builder = timeseries.Panel().unit(unit).min(0).line_width(1).show_points(kinds.VisibilityMode.NEVER)
    builder.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.NONE))
    builder.legend(_legend())
    if none_means:
        builder.no_value(none_means)
    if stacked:
        builder.fill_opacity(70).line_width(0)
        builder.stacking(common.StackingConfig().mode(kinds.StackingMode(stacked)).group("A"))
    for name, colour in (colours or {}).items():
        builder.override_by_name(name, [_fixed(colour)])
    if dashed:
        builder.override_by_name(
            dashed,
            [
                _fixed(REFERENCE_COLOUR),
                models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
                models.DynamicConfigValue("custom.lineWidth", 2),
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            ],
        )
    return Panel(builder, width, height, title, formula, reading, targets, exemplars=unit == "s")


def number(
    title: str,
    target: Target,
    *,
    unit: str,
    formula: str,
    reading: str,
    decimals: int | None = None,
    width: int = 3,
) -> Panel:
    """The newest value, large."""
    builder = _stat(unit).text_mode(kinds.BigValueTextMode.VALUE)
    if decimals is not None:
        builder.decimals(decimals)
    return Panel(builder, width, 4, title, formula, reading, [target])


def word(
    title: str, target: Target, *, colours: Mapping[str, str], formula: str, reading: str, width: int = 6
) -> Panel:
    """The name of the one series that an instant query returns, with its value."""
    builder = _stat("percentunit").decimals(0)
    builder.text_mode(kinds.BigValueTextMode.VALUE_AND_NAME).no_value("No requests")
    for name, colour in colours.items():
        builder.override_by_name(name, [_fixed(colour)])
    return Panel(builder, width, 6, title, formula, reading, [target], instant=True)


def plane(
    title: str,
    curves: Sequence[tuple[Target, Target]],
    *,
    unit: str,
    x_title: str,
    x_unit: str,
    formula: str,
    reading: str,
    colours: Mapping[str, str],
    width: int = 12,
    height: int = 10,
    join: str = "inner",
) -> Panel:
    """
    One point per moment; each curve is x and y, and is named after its y.

    ``join`` "outer" is for curves that have no moments in common.
    """
    builder = xychart.Panel().unit(unit).min(0).show(xychart_models.XYShowMode.POINTS)
    builder.point_size(Built(xychart_models.XychartFieldConfigPointSize(fixed=6))).fill_opacity(60)
    builder.legend(_legend()).tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.SINGLE))
    builder.with_transformation(
        models.DataTransformerConfig(id_val="joinByField", options={"byField": "Time", "mode": join})
    )
    builder.mapping(xychart_models.SeriesMapping.MANUAL)
    builder.series([Built(_against(x.legend, y.legend)) for x, y in curves])
    for x in dict.fromkeys(x.legend for x, _ in curves):
        axis = {"unit": x_unit, "custom.axisLabel": x_title}
        builder.override_by_name(x, [models.DynamicConfigValue(key, value) for key, value in axis.items()])
    for name, colour in colours.items():
        builder.override_by_name(name, [_fixed(colour)])
    targets = tuple(dict.fromkeys(target for curve in curves for target in curve))
    return Panel(builder, width, height, title, formula, reading, targets)


def density(
    title: str, target: Target, *, unit: str, formula: str, reading: str, width: int = 8, height: int = 9
) -> Panel:
    """A heatmap of the buckets of a histogram over time."""
    builder = (
        heatmap.Panel().calculate(False).cell_gap(1).filter_values(Built(heatmap_models.FilterValueRange(le=1e-9)))
    )
    builder.color(Built(_HEAT))
    builder.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(kinds.AxisPlacement.LEFT))
    builder.show_legend().tooltip(Built(_HEAT_TOOLTIP)).exemplars_color("rgba(255,0,255,0.7)")
    return Panel(builder, width, height, title, formula, reading, [target], exemplars=True)


def notes(title: str, markdown: str, *, formula: str, height: int = 6, width: int = WIDTH) -> Panel:
    """Text for the reader."""
    builder = text.Panel().mode(text_models.TextMode.MARKDOWN).content(markdown)
    return Panel(builder, width, height, title, formula, "How to read this page.")


def _stat(unit: str) -> Any:
    builder = stat.Panel().unit(unit).color_mode(kinds.BigValueColorMode.VALUE)
    builder.graph_mode(kinds.BigValueGraphMode.NONE)
    builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    # One size for all, or the shortest number would be the largest.
    builder.text(common.VizTextDisplayOptions().value_size(28).title_size(18))
    return builder.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color("text"))


def _legend() -> Any:
    legend = common.VizLegendOptions().show_legend(True).display_mode(kinds.LegendDisplayMode.LIST)
    return legend.placement(kinds.LegendPlacement.BOTTOM)


def _fixed(colour: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


def _against(x: str, y: str) -> Any:
    def named(name: str) -> xychart_models.MatcherConfig:
        return xychart_models.MatcherConfig(id_val="byName", options=name)

    return xychart_models.XYSeriesConfig(
        name=xychart_models.XychartXYSeriesConfigName(fixed=y),
        frame=xychart_models.XychartXYSeriesConfigFrame(xychart_models.MatcherConfig(id_val="byIndex", options=0)),
        x=xychart_models.XychartXYSeriesConfigX(named(x)),
        y=xychart_models.XychartXYSeriesConfigY(named(y)),
    )
