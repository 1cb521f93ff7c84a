"""What the demo shows while it works: steps, a live table, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from otel_llm.report import tables
from otel_llm.report.levels import Summary
from otel_llm.report.palette import milliseconds

_PLAIN_WIDTH = 130


class Screen:
    """Writes to standard output; redraws in place only if that is a terminal."""

    def __init__(self, steps: int) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=_PLAIN_WIDTH)
        self._steps = steps
        self._step = 0

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Name what happens now, and how long it took in the end."""
        self._step += 1
        number = f"[bold cyan]{self._step}/{self._steps}[/]"
        begun = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn(f"{number} {escape(doing)}"), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                progress.add_task("")
                yield
            self._console.print(f"{number} {escape(doing)} [dim]{time.monotonic() - begun:.1f} s[/]")
        else:
            self._console.print(f"{number} {escape(doing)}")
            yield
            self._console.print(f"    done in {time.monotonic() - begun:.1f} s")

    @contextmanager
    def table(self, doing: str) -> Iterator[LiveTable]:
        """Show the levels of a run while they are measured."""
        self._step += 1
        self._console.print(f"[bold cyan]{self._step}/{self._steps}[/] {escape(doing)}")
        with LiveTable(self._console).shown() as live:
            yield live

    def summary(self, summaries: Sequence[Summary], findings: Sequence[str]) -> None:
        """The tables of a finished run, and what they say in sentences."""
        width = self._console.width
        for title, table in (
            ("Latency and throughput", tables.latency(summaries, width)),
            ("Where the time went", tables.phases(summaries, width)),
        ):
            self._console.print()
            self._console.print(f"[bold]{title}[/]")
            self._console.print(table)
        for finding in findings:
            self._console.print(f"• {escape(finding)}")
        self._console.print()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(escape(text), soft_wrap=True)

    def fail(self, text: str) -> None:
        """A line that says what went wrong."""
        self._console.print(f"[bold red]{escape(text)}[/]", soft_wrap=True)


class LiveTable:
    """A table that is redrawn in place, or a line per finished level where that is not possible."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    @contextmanager
    def shown(self) -> Iterator[LiveTable]:
        """Take the screen, and leave the table on it in its last state."""
        if self._live is None:
            yield self
            return
        with self._live:
            yield self

    def update(self, done: Sequence[Summary], running: Summary | None, waiting: Sequence[int]) -> None:
        """Draw the state of the run."""
        if self._live is not None:
            self._live.update(tables.progress(done, running, waiting, self._console.width), refresh=True)

    def finished(self, summary: Summary) -> None:
        """Say that a level has been measured."""
        if self._live is not None or summary.duration is None or summary.time_to_first_token is None:
            return
        shares = ", ".join(f"{name} {share:.0%}" for name, share in summary.shares.items() if share >= 0.005)
        self._console.print(
            f"    {summary.concurrency:>3} in flight: {summary.requests} requests, {summary.request_rate:.1f}/s, "
            f"{summary.token_rate:,.0f} tokens/s, TTFT {milliseconds(summary.time_to_first_token.mean)} ms, "
            f"total {milliseconds(summary.duration.mean)} ms: {shares}"
        )
