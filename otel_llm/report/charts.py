"""Charts of load levels and requests, as plotly figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from otel_llm.report.levels import Spread, Summary
from otel_llm.report.palette import COLOURS, milliseconds
from otel_llm.report.requests import PHASE_ORDER, Request

_INK: Final = "#1d2430"
_MUTED: Final = "#667085"
_GRID: Final = "#e8ebf0"
_STRONG: Final = "#2f6fc4"
_SOFT: Final = "#9db9e0"
_CLIENT: Final = "#c2577e"
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_Measure = Callable[[Summary], Spread | None]
WATERFALL_ROWS: Final = 60
"""Requests that a waterfall shows, the first ones of its level."""


def stacked_phases(summaries: Sequence[Summary]) -> Any:
    """Mean time in each phase by level, and beside it the share of each."""
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.09,
        subplot_titles=("Mean time of a request, ms", "Share of the time"),
    )
    levels = [str(summary.concurrency) for summary in summaries]
    for name in (name for name in PHASE_ORDER if any(name in summary.phases for summary in summaries)):
        means = [spread.mean / 1e6 if (spread := summary.phases.get(name)) else 0 for summary in summaries]
        shares = [summary.shares.get(name, 0) for summary in summaries]
        p95 = [both.p95 / 1e6 if (both := summary.phases.get(name)) else 0 for summary in summaries]
        look = {"name": name, "legendgroup": name, "marker": {"color": COLOURS[name], "line": {"width": 0}}}
        hover = f"<b>{name}</b>, %{{x}} in flight<br>mean %{{y:,.2f}} ms<br>p95 %{{customdata:,.2f}} ms<extra></extra>"
        figure.add_bar(x=levels, y=means, customdata=p95, hovertemplate=hover, **look, row=1, col=1)
        part = f"<b>{name}</b>, %{{x}} in flight<br>%{{y:.1%}}<extra></extra>"
        labels = [f"{share:.0%}" if share >= 0.05 else "" for share in shares]
        inside = {"text": labels, "textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
        figure.add_bar(
            x=levels, y=shares, hovertemplate=part, showlegend=False, **look, **inside, row=1, col=2,
            textfont={"color": "white", "size": 12},
        )  # fmt: skip
    totals = [sum(spread.mean for spread in summary.phases.values()) for summary in summaries]
    figure.add_scatter(
        x=levels,
        y=[total / 1e6 for total in totals],
        mode="text",
        text=[milliseconds(total) for total in totals],
        textposition="top center",
        textfont={"color": _INK, "size": 13},
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
        row=1,
        col=1,
    )
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_xaxes(title_text="requests in flight", type="category")
    figure.update_yaxes(tickformat=",.0f", row=1, col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 1], showgrid=False, row=1, col=2)
    return _styled(figure, 430)


def throughput_latency(summaries: Sequence[Summary]) -> Any:
    """Duration and time to first token over throughput: one point per level, joined in order of load."""
    figure = make_subplots(
        rows=1,
        cols=2,
        horizontal_spacing=0.09,
        subplot_titles=("Duration of a request, ms", "Time to first token, ms"),
    )
    panels: tuple[tuple[_Measure, _Measure], ...] = (
        (lambda summary: summary.duration, lambda summary: summary.client_duration),
        (lambda summary: summary.time_to_first_token, lambda summary: summary.client_time_to_first_token),
    )
    for column, (server, client) in enumerate(panels, start=1):
        curves: tuple[tuple[str, _Measure, Callable[[Spread], float], dict[str, Any]], ...] = (
            ("p95", server, lambda spread: spread.p95, {"color": _SOFT, "width": 2}),
            ("mean", server, lambda spread: spread.mean, {"color": _STRONG, "width": 3}),
            (
                "mean, client's clock",
                client,
                lambda spread: spread.mean,
                {"color": _CLIENT, "width": 1.5, "dash": "dot"},
            ),
        )
        for name, measure, value, line in curves:
            known = [(summary, found) for summary in summaries if (found := measure(summary))]
            figure.add_scatter(
                x=[summary.token_rate for summary, _ in known],
                y=[value(found) / 1e6 for _, found in known],
                customdata=[[summary.concurrency, summary.request_rate] for summary, _ in known],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers+text" if name == "mean" else "lines+markers",
                text=[str(summary.concurrency) for summary, _ in known],
                textposition="bottom right",
                textfont={"size": 12, "color": _STRONG},
                line=line,
                marker={"size": 9 if name == "mean" else 6, "line": {"color": "white", "width": 1}},
                hovertemplate=f"<b>%{{customdata[0]}} in flight</b>, {name}<br>%{{y:,.1f}} ms at %{{x:,.0f}} "
                "output tokens/s<br>%{customdata[1]:.1f} requests/s<extra></extra>",
                cliponaxis=False,
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="output tokens per second (labels: requests in flight)", rangemode="tozero")
    figure.update_yaxes(tickformat=",.0f", rangemode="tozero")
    return _styled(figure, 410)


def waterfall(requests: Sequence[Request]) -> Any:
    """One row per request over time, cut into its phases: the first requests of a level."""
    shown = sorted(requests, key=lambda request: request.start)[:WATERFALL_ROWS]
    origin = shown[0].start if shown else 0
    figure = go.Figure()
    present = {part.phase for request in shown for part in request.parts}
    for name in (name for name in PHASE_ORDER if name in present):
        bars = [
            (row, part, request)
            for row, request in enumerate(shown, start=1)
            for part in request.parts
            if part.phase == name
        ]
        figure.add_bar(
            y=[row for row, _, _ in bars],
            x=[part.duration / 1e6 for _, part, _ in bars],
            base=[(part.start - origin) / 1e6 for _, part, _ in bars],
            customdata=[[request.trace_id, request.prompt_tokens, request.output_tokens] for _, _, request in bars],
            orientation="h",
            name=name,
            marker={"color": COLOURS[name], "line": {"width": 0}},
            hovertemplate=f"<b>{name}</b> %{{x:,.3f}} ms<br>%{{customdata[1]}} tokens in, %{{customdata[2]}} out"
            "<br>trace %{customdata[0]}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.18)
    figure.update_xaxes(title_text="milliseconds since the first of them", tickformat=",.0f")
    figure.update_yaxes(autorange="reversed", showticklabels=False, showgrid=False, title_text="requests")
    return _styled(figure, max(260, 110 + 9 * len(shown)))


def _styled(figure: Any, height: int) -> Any:
    figure.update_layout(
        height=height,
        font={"family": _FONT, "size": 13, "color": _INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 60, "r": 24, "t": 64, "b": 54},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container", "traceorder": "normal"},
        hoverlabel={"bgcolor": "white", "bordercolor": _GRID, "font": {"color": _INK, "family": _FONT}},
    )
    figure.update_xaxes(gridcolor=_GRID, linecolor=_GRID, zeroline=False, title_font={"color": _MUTED, "size": 12})
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, title_font={"color": _MUTED, "size": 12})
    figure.update_annotations(font={"size": 13, "color": _MUTED})
    return figure
