"""Real backends, started anew for each test module: they are up in a fraction of a second."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import programs
import pytest
from obtain import obtained

from otel_llm.report.receiver import Receiver


@pytest.fixture(scope="module")
def victoria_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Database]:
    """A time-series database with OTLP ingestion."""
    program = obtained(partial(programs.installed_program, "victoria-metrics"))
    with programs.victoria_metrics(program, tmp_path_factory.mktemp("victoria-metrics")) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Database]:
    """The database that defines PromQL."""
    program, agent = (obtained(partial(programs.installed_program, name)) for name in ("prometheus", "vmagent"))
    with programs.prometheus(program, agent, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' checker of rules."""
    return obtained(partial(programs.installed_program, "promtool"))


@pytest.fixture(scope="module")
def traces() -> Iterator[Receiver]:
    """Where the collector sends traces."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def rotel(
    victoria_metrics: programs.Database, traces: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[programs.Collector]:
    """A collector that passes metrics on to VictoriaMetrics and traces to the receiver."""
    program = obtained(programs.rotel_program)
    folder, traces_to = tmp_path_factory.mktemp("rotel"), f"{traces.url}/v1/traces"
    with programs.rotel(program, folder, metrics_to=victoria_metrics.otlp_metrics, traces_to=traces_to) as running:
        yield running


@pytest.fixture(scope="module")
def otelcol(
    victoria_metrics: programs.Database, traces: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[programs.Collector]:
    """The same with the OpenTelemetry Collector, which takes minutes to build."""
    program = obtained(partial(programs.installed_program, "otelcol"), optional=True)
    folder, traces_to = tmp_path_factory.mktemp("otelcol"), f"{traces.url}/v1/traces"
    with programs.otelcol(program, folder, metrics_to=victoria_metrics.otlp_metrics, traces_to=traces_to) as running:
        yield running
