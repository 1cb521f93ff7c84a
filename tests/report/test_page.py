from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from otel_llm.report import page, tables
from otel_llm.report.levels import Exchange, Level, Summary, summarise
from otel_llm.report.requests import Request
from tests.report.made import MS, request

LEVELS = (1, 2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    phases = {"accept": 1, "preprocess": 2, "queue": 3, "prefill": 40, "decode": 1500, "postprocess": 5}
    return [
        request(f"{level}-{number}", number * 5, {name: part * level for name, part in phases.items()})
        for level in LEVELS
        for number in range(3)
    ]


@pytest.fixture(scope="module")
def summaries(requests: list[Request]) -> list[Summary]:
    return [
        summarise(
            Level(level, 0, 1000 * MS, [Exchange(f"{level}-{n}", 2000 * level * MS, 60 * MS, 11) for n in range(3)]),
            requests,
            0,
        )
        for level in LEVELS
    ]


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = {"src", "href", "srcset", "data", "action", "background", "poster"}
        self.found += [f"{tag} {name}={value}" for name, value in attrs if name in loading]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_loads_nothing_and_shows_the_figures(
    tmp_path: Path, summaries: list[Summary], requests: list[Request]
) -> None:
    path = tmp_path / "page.html"
    page.write(path, summaries, requests, setting="<script>alert(1)</script>", findings=["a < b & c"])
    html = path.read_text()
    parser = Loads()
    parser.feed(html)
    assert parser.found == []
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert not [text for text in style if "url(" in text or "@import" in text]
    assert html.count("Plotly.newPlot(") == 3
    assert "<script>alert" not in html
    assert "a &lt; b &amp; c" in html
    text = " ".join(parser.text)
    assert "1,500 / 1,500" in text  # decode with one in flight
    assert "96.7%" in text
    assert text.count("0 ns") == len(LEVELS) + 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, summaries: list[Summary], requests: list[Request]
) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match=r"page\.html"):
        page.write(tmp_path / "page.html", summaries, requests, setting="", findings=[])
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("width", [80, 100, 130])
def test_tables_show_every_figure_at_any_width(width: int, summaries: list[Summary]) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width)
    console.print(tables.progress(summaries[:2], summaries[2], LEVELS[3:], width))
    console.print(tables.latency(summaries, width))
    console.print(tables.phases(summaries, width))
    text = output.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for level in LEVELS:
        assert f"{level} in flight" in text
        assert f"{1500 * level:,} / {1500 * level:,}" in text
    assert text.count(" 0 ns") == len(LEVELS)


def test_a_bar_has_the_shares_of_the_time() -> None:
    text = tables.bar({"queue": 0.25, "prefill": 0.125, "decode": 0.625}, 16)
    assert text.plain == "█" * 16
    assert [span.end - span.start for span in text.spans] == [4, 2, 10]
