"""One self-contained HTML page: charts, tables and how to read them. It loads nothing from anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import plotly.io
import plotly.offline

from otel_llm.report import charts
from otel_llm.report.levels import Spread, Summary
from otel_llm.report.palette import COLOURS, milliseconds
from otel_llm.report.requests import Request
from otel_llm.report.tables import both, present

_UNKNOWN: Final = "&ndash;"
_STYLE: Final = """
:root { color-scheme: light; --ink: #1d2430; --muted: #667085; --line: #e3e7ee; --back: #f5f7fa; --accent: #2f6fc4 }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.02em }
h2 { font-size: 19px; margin: 0 0 4px; letter-spacing: -.01em }
p { margin: 0 0 12px; max-width: 110ch } .muted { color: var(--muted) }
section { background: white; border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin-top: 20px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 14px; margin-top: 26px }
.card { background: white; border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px }
.card b { display: block; font-size: 26px; line-height: 1.25; letter-spacing: -.02em }
.card span { color: var(--muted); font-size: 13px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-weight: 600; font-size: 12.5px; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
tbody tr:last-child td { border-bottom: 0 } tr.sum td { font-weight: 600 }
tr.first td { border-top: 2px solid var(--line) }
td small { color: var(--muted); font-size: 12px } td.client { color: var(--muted) }
i.dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; vertical-align: -1px }
ul { margin: 0; padding-left: 20px } li { margin: 4px 0; max-width: 110ch }
"""


def write(
    path: Path, summaries: Sequence[Summary], requests: Sequence[Request], *, setting: str, findings: Sequence[str]
) -> None:
    """
    Write the page for some load levels.

    ``requests`` are those of the highest level, drawn one by one; ``setting``
    says in a line what was measured where; ``findings`` are sentences. Raises
    OSError if the file cannot be written; it appears complete or not at all.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(_page(summaries, requests, setting, findings), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _page(summaries: Sequence[Summary], requests: Sequence[Request], setting: str, findings: Sequence[str]) -> str:
    sentences = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
    highest = summaries[-1].concurrency
    shown = min(len(requests), charts.WATERFALL_ROWS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>otel-llm: where each request's time went</title>
<style>{_STYLE}</style>
<script>{plotly.offline.get_plotlyjs()}</script>
</head>
<body>
<main>
<h1>Where each request&rsquo;s time went</h1>
<p class="muted">{escape(setting)}</p>
<div class="cards">{_cards(summaries)}</div>
<section><h2>What it shows</h2><ul>{sentences}</ul></section>
<section><h2>Phases by load</h2>
<p class="muted">Phases never overlap and leave no gap, so the bars add up to the measured duration.</p>
{_chart(charts.stacked_phases(summaries))}</section>
<section><h2>Throughput and latency</h2>
<p class="muted">Every point is a number of requests in flight. Where the curve turns upwards, more load buys waiting
instead of work.</p>
{_chart(charts.throughput_latency(summaries))}</section>
<section><h2>Requests one by one</h2>
<p class="muted">The first {shown} requests with {highest} in flight, each in its phases. Hover for tokens and
trace id.</p>
{_chart(charts.waterfall(requests))}</section>
<section><h2>Latency and throughput</h2>
<p class="muted">Times in milliseconds, mean and 95th percentile. Client columns are the load generator&rsquo;s own
clock: they also hold HTTP, the network and the client itself.</p>
<div class="scroll">{_latency(summaries)}</div></section>
<section><h2>Time by phase</h2>
<p class="muted">Mean and 95th percentile in milliseconds, and the share of all time. The residual is the largest
difference, over all requests of a level, between the sum of the phases and the duration of the request.</p>
<div class="scroll">{_phases(summaries)}</div></section>
</main>
</body>
</html>
"""


def _chart(figure: Any) -> str:
    options = {"displayModeBar": False, "responsive": True}
    html: str = plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=options)
    return html


def _cards(summaries: Sequence[Summary]) -> str:
    requests = sum(summary.requests for summary in summaries)
    residual = max(abs(summary.residual) for summary in summaries)
    best = max(summaries, key=lambda summary: summary.token_rate)
    low, high = summaries[0], summaries[-1]
    cards = [
        (f"{requests:,}", "requests, measured phase by phase"),
        (f"{residual:,} ns", "largest residual: time not accounted for"),
        (f"{best.token_rate:,.0f} tokens/s", f"highest output rate, with {best.concurrency} in flight"),
    ]
    if low.time_to_first_token and high.time_to_first_token:
        pair = (low.time_to_first_token.mean, high.time_to_first_token.mean)
        label = f"mean TTFT with {low.concurrency} and with {high.concurrency} in flight"
        cards.append((f"{milliseconds(pair[0])} → {milliseconds(pair[1])} ms", label))
    return "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for value, label in cards)


def _latency(summaries: Sequence[Summary]) -> str:
    heads = (
        "in flight", "requests", "requests/s", "output tokens/s", "TTFT", "TTFT, client", "TPOT", "duration",
        "duration, client",
    )  # fmt: skip
    rows = []
    for summary in summaries:
        cells = [
            f"<td>{summary.concurrency}</td><td>{summary.requests:,}</td><td>{summary.request_rate:.2f}</td>",
            f"<td>{summary.token_rate:,.0f}</td>",
            _spread(summary.time_to_first_token),
            _spread(summary.client_time_to_first_token, "client"),
            _spread(summary.time_per_output_token),
            _spread(summary.duration),
            _spread(summary.client_duration, "client"),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, rows)


def _phases(summaries: Sequence[Summary]) -> str:
    rows = []
    for name in present(summaries):
        cells = "".join(_phase(summary, name) for summary in summaries)
        dot = f'<i class="dot" style="background:{COLOURS[name]}"></i>'
        rows.append(f"<tr><td>{dot}{name}</td>{cells}</tr>")
    sums = [milliseconds(sum(spread.mean for spread in summary.phases.values())) for summary in summaries]
    measured = [milliseconds(summary.duration.mean) if summary.duration else _UNKNOWN for summary in summaries]
    residuals = [f"{summary.residual:,} ns" for summary in summaries]
    for style, label, values in (
        ("sum first", "sum of the phases, mean", sums),
        ("sum", "measured duration, mean", measured),
        ("sum", "largest residual", residuals),
    ):
        rows.append(f'<tr class="{style}"><td>{label}</td>{"".join(f"<td>{value}</td>" for value in values)}</tr>')
    return _table(("phase", *(f"{summary.concurrency} in flight" for summary in summaries)), rows)


def _phase(summary: Summary, name: str) -> str:
    spread = summary.phases.get(name)
    if spread is None:
        return f"<td>{_UNKNOWN}</td>"
    return f"<td>{both(spread)}<br><small>{summary.shares[name]:.1%}</small></td>"


def _spread(spread: Spread | None, style: str = "server") -> str:
    return f'<td class="{style}">{both(spread) if spread else _UNKNOWN}</td>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    titles = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
