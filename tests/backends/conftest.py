"""Real backends, started anew for each test module: they are up in a fraction of a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import programs
import pytest

from otel_llm.report.receiver import Receiver

T = TypeVar("T")


def obtained(find: Callable[[], T]) -> T:
    """Skip the test, or fail it where everything is required, if a program is missing."""
    try:
        return find()
    except programs.MissingProgramError as missing:
        if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def victoria_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Database]:
    """A time-series database with OTLP ingestion."""
    program = obtained(partial(programs.debian_program, "victoria-metrics"))
    with programs.victoria_metrics(program, tmp_path_factory.mktemp("victoria-metrics")) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Database]:
    """The database that defines PromQL."""
    program, agent = (obtained(partial(programs.debian_program, name)) for name in ("prometheus", "vmagent"))
    with programs.prometheus(program, agent, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' checker of rules."""
    return obtained(partial(programs.debian_program, "promtool"))


@pytest.fixture(scope="module")
def traces() -> Iterator[Receiver]:
    """Where the collector sends traces."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def collector(
    victoria_metrics: programs.Database, traces: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[programs.Rotel]:
    """A collector that passes metrics on to VictoriaMetrics and traces to the receiver."""
    program = obtained(programs.rotel_program)
    folder = tmp_path_factory.mktemp("rotel")
    metrics_to, traces_to = victoria_metrics.otlp_metrics, f"{traces.url}/v1/traces"
    with programs.rotel(program, folder, metrics_to=metrics_to, traces_to=traces_to) as running:
        yield running
