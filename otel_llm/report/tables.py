"""Load levels as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from otel_llm.report.levels import Spread, Summary
from otel_llm.report.palette import COLOURS, milliseconds
from otel_llm.report.requests import PHASE_ORDER

_UNKNOWN = "-"


def progress(done: Sequence[Summary], running: Summary | None, waiting: Sequence[int], width: int) -> RenderableType:
    """All levels of a run: those measured, the one that is running, and those to come; ``width`` in characters."""
    table = _table("in\nflight", "requests", "req/s", "output\ntok/s", "TTFT\nms", "TPOT\nms", "total\nms")
    table.add_column("where the time goes", justify="left", no_wrap=True)
    room = max(12, width - 61)
    rows = [*done, *([running] if running else [])]
    for summary in rows:
        table.add_row(
            str(summary.concurrency),
            str(summary.requests),
            f"{summary.request_rate:.1f}",
            f"{summary.token_rate:,.0f}",
            _mean(summary.time_to_first_token),
            _mean(summary.time_per_output_token),
            _mean(summary.duration),
            bar(summary.shares, room),
            style="bold" if summary is running else None,
        )
    for concurrency in waiting:
        table.add_row(str(concurrency), *[""] * 7, style="dim")
    return Group(table, legend(rows))


def latency(summaries: Sequence[Summary], width: int) -> RenderableType:
    """Throughput and latency by level, with what the client measured beside it; ``width`` in characters."""
    levels = _column("in flight", [str(summary.concurrency) for summary in summaries])
    columns = [
        _column("requests", [str(summary.requests) for summary in summaries]),
        _column("req/s", [f"{summary.request_rate:.1f}" for summary in summaries]),
        _column("output\ntok/s", [f"{summary.token_rate:,.0f}" for summary in summaries]),
        _spreads("TTFT", [summary.time_to_first_token for summary in summaries]),
        _spreads("client TTFT", [summary.client_time_to_first_token for summary in summaries], "dim"),
        _spreads("TPOT", [summary.time_per_output_token for summary in summaries]),
        _spreads("total", [summary.duration for summary in summaries]),
        _spreads("client total", [summary.client_duration for summary in summaries], "dim"),
    ]
    return _fitted(levels, columns, width)


def phases(summaries: Sequence[Summary], width: int) -> RenderableType:
    """Mean, p95 and share of every phase by level; below it their sum, the measured duration and the residual."""
    names = present(summaries)
    labels = [
        *[Text.assemble(("■ ", COLOURS[name]), name, "\n") for name in names],
        Text("sum of phases, mean"),
        Text("measured total, mean"),
        Text("largest residual", "bold"),
    ]
    columns = [
        _Column(
            f"{summary.concurrency} in flight\nmean / p95 ms",
            [
                *[_phase_cell(summary, name) for name in names],
                Text(milliseconds(sum(spread.mean for spread in summary.phases.values()))),
                Text(_mean(summary.duration)),
                Text(f"{summary.residual:,} ns", "bold"),
            ],
        )
        for summary in summaries
    ]
    return _fitted(_Column("phase", labels), columns, width, ruled_after=len(names))


def bar(shares: Mapping[str, float], width: int) -> Text:
    """Shares of time as coloured blocks, ``width`` characters in all."""
    text = Text()
    covered = 0.0
    drawn = 0
    for name, share in shares.items():
        covered += share
        blocks = round(covered * width) - drawn
        text.append("█" * blocks, COLOURS[name])
        drawn += blocks
    return text


def legend(summaries: Sequence[Summary]) -> Text:
    """The colours of the phases that occur."""
    parts = [(f"■ {name}  ", COLOURS[name]) for name in present(summaries)]
    return Text.assemble(" ", *parts)


def present(summaries: Sequence[Summary]) -> list[str]:
    """The phases that occur, in order."""
    return [name for name in PHASE_ORDER if any(name in summary.phases for summary in summaries)]


def both(spread: Spread | None) -> str:
    """Mean and 95th percentile in milliseconds."""
    return f"{milliseconds(spread.mean)} / {milliseconds(spread.p95)}" if spread else _UNKNOWN


def _mean(spread: Spread | None) -> str:
    return milliseconds(spread.mean) if spread else _UNKNOWN


def _phase_cell(summary: Summary, name: str) -> Text:
    spread = summary.phases.get(name)
    return Text.assemble(both(spread), "\n", (f"{summary.shares[name]:.1%}" if spread else "", "dim"))


class _Column(NamedTuple):
    """A heading and the cells below it."""

    heading: str
    cells: Sequence[Text]

    @property
    def width(self) -> int:
        """Characters, with the space to the next column."""
        lines = [*self.heading.splitlines(), *(line for cell in self.cells for line in cell.plain.splitlines())]
        return max(map(len, lines)) + 3


def _column(heading: str, cells: Sequence[str], style: str = "") -> _Column:
    return _Column(heading, [Text(cell, style) for cell in cells])


def _spreads(heading: str, spreads: Sequence[Spread | None], style: str = "") -> _Column:
    return _column(f"{heading}\nmean / p95 ms", [both(spread) for spread in spreads], style)


def _fitted(labels: _Column, columns: Sequence[_Column], width: int, ruled_after: int = 0) -> RenderableType:
    """As many tables below each other as it takes to show all columns in full."""
    tables: list[Table] = []
    room = 0
    groups: list[list[_Column]] = []
    for column in columns:
        if not groups or column.width > room:
            groups.append([])
            room = width - labels.width - 1
        groups[-1].append(column)
        room -= column.width
    for group in groups:
        table = _table()
        table.add_column(labels.heading, no_wrap=True)
        for column in group:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for number, cells in enumerate(zip(labels.cells, *(column.cells for column in group), strict=True), start=1):
            table.add_row(*cells, end_section=number == ruled_after)
        tables.append(table)
    return Group(*tables)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
