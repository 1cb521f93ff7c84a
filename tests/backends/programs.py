"""Real telemetry programs, started on loopback and stopped again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".cache" / "backends" / "bin"
OBTAIN = {"otelcol": "tests/backends/collector/build.sh"}
"""What to run for a program, where it is not install.sh beside this file."""
COLLECTOR_CONFIG = ROOT / "integrations" / "otel-collector" / "minimal.yaml"
START_SECONDS = 30.0

Series = dict[frozenset[tuple[str, str]], list[tuple[float, float]]]


class MissingProgramError(Exception):
    """A program is not on this machine; the message says how to obtain it."""


def installed_program(name: str) -> Path:
    """Return the program that was obtained for the tests, or the one on PATH."""
    unpacked = INSTALLED / name
    if unpacked.exists():
        return unpacked
    if on_path := shutil.which(name):
        return Path(on_path)
    raise MissingProgramError(f"no {name}: run {OBTAIN.get(name, 'tests/backends/install.sh')}")


def rotel_program() -> Path:
    """Return the collector inside the installed `rotel` distribution, which is not imported."""
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        raise MissingProgramError("no rotel: run pip install --group dev")
    return Path(spec.origin).with_name("rotel-agent")


def installed_engine(name: str) -> None:
    """Raise MissingProgramError if an engine cannot be imported; it is not imported."""
    if importlib.util.find_spec(name) is None:
        raise MissingProgramError(f"no {name} in this Python")


@dataclass(frozen=True)
class Database:
    """A time-series database that answers PromQL."""

    url: str
    otlp_metrics: str
    """Where it takes metrics, OTLP over HTTP."""
    flush: str = ""
    """What to ask so that all samples taken in are found; empty where they are anyway."""

    def select(self, query: str, at: float | None = None) -> dict[frozenset[tuple[str, str]], float]:
        """Value by label set, at a time (seconds since the epoch; now unless given)."""
        series = self._query("query", {"query": query, "time": time.time() if at is None else at})
        return {frozenset(one["metric"].items()): float(one["value"][1]) for one in series}

    def wait_for(self, query: str, seconds: float = 20.0, at: float | None = None) -> None:
        """Return as soon as the query has a result, at a time (now unless given). Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.select(query, at):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no result within {seconds:g} s: {query}")
            time.sleep(0.05)

    def select_range(self, query: str, start: float, end: float, step: float) -> Series:
        """(time, value) pairs by label set, times in seconds since the epoch; of a native histogram its count."""
        series = self._query("query_range", {"query": query, "start": start, "end": end, "step": step})
        return {
            frozenset(one["metric"].items()): [(stamp, float(value)) for stamp, value in one["values"]]
            if "values" in one
            else [(stamp, float(histogram["count"])) for stamp, histogram in one["histograms"]]
            for one in series
        }

    def _query(self, kind: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        if self.flush:
            _get(self.flush)
        answer = json.loads(_get(f"{self.url}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


@dataclass(frozen=True)
class Collector:
    """An OpenTelemetry collector in front of other endpoints."""

    grpc: str
    """OTLP/gRPC endpoint, an URL."""
    http: str
    """OTLP/HTTP endpoint, an URL without a path."""


@contextmanager
def victoria_metrics(program: Path, folder: Path) -> Iterator[Database]:
    """Run VictoriaMetrics with its data in ``folder``."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(program),
        f"-storageDataPath={folder / 'data'}",
        f"-httpListenAddr={address}",
        "-opentelemetry.usePrometheusNaming",
        "-search.latencyOffset=0s",
        "-search.disableCache",
        "-retentionPeriod=1d",
    ]
    url = f"http://{address}"
    with _running(command, folder / "victoria-metrics.log", [address]):
        yield Database(url, f"{url}/opentelemetry/v1/metrics", f"{url}/internal/force_flush")


@contextmanager
def prometheus(program: Path, agent: Path, folder: Path) -> Iterator[Database]:
    """
    Run Prometheus with its data in ``folder``.

    Debian's has no OTLP receiver: an agent takes OTLP in its place, gives the
    series their job and instance, and writes them on.
    """
    address, otlp = (f"127.0.0.1:{free_port()}" for _ in range(2))
    config = folder / "prometheus.yml"
    config.write_text("storage: {tsdb: {out_of_order_time_window: 5m}}\n")
    command = [
        str(program),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--web.enable-remote-write-receiver",
    ]
    agent_command = [
        str(agent),
        f"-httpListenAddr={otlp}",
        "-opentelemetry.usePrometheusNaming",
        f"-remoteWrite.url=http://{address}/api/v1/write",
        "-remoteWrite.forcePromProto",
        "-remoteWrite.flushInterval=100ms",
        f"-remoteWrite.relabelConfig={ROOT / 'integrations' / 'grafana' / 'victoria-metrics-relabel.yml'}",
        f"-remoteWrite.tmpDataPath={folder / 'agent'}",
    ]
    with (
        _running(command, folder / "prometheus.log", [address]),
        _running(agent_command, folder / "vmagent.log", [otlp]),
    ):
        _until_ready(address)
        yield Database(f"http://{address}", f"http://{otlp}/opentelemetry/v1/metrics")


@contextmanager
def scraping_prometheus(program: Path, folder: Path, port: int, *, seconds: float) -> Iterator[Database]:
    """Run Prometheus, which scrapes a port of loopback and stores histograms as explicit and as native ones."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n"
        "- job_name: workload\n"
        f"  scrape_interval: {int(seconds * 1000)}ms\n"
        f"  scrape_timeout: {int(seconds * 1000)}ms\n"
        "  convert_classic_histograms_to_nhcb: true\n"
        "  always_scrape_classic_histograms: true\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    command = [
        str(program),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=native-histograms",
    ]
    with _running(command, folder / "prometheus.log", [address]):
        _until_ready(address)
        yield Database(f"http://{address}", otlp_metrics="")


@contextmanager
def rotel(program: Path, folder: Path, *, metrics_to: str, traces_to: str) -> Iterator[Collector]:
    """Run rotel, which passes metrics and traces on over OTLP/HTTP to these URLs."""
    grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        str(program),
        "start",
        f"--pid-file={folder / 'rotel.pid'}",
        f"--otlp-grpc-endpoint={grpc}",
        f"--otlp-http-endpoint={http}",
        "--otlp-receiver-logs-disabled",
        "--exporter=otlp",
        "--otlp-exporter-protocol=http",
        f"--otlp-exporter-metrics-endpoint={metrics_to}",
        f"--otlp-exporter-traces-endpoint={traces_to}",
        f"--otlp-exporter-logs-endpoint={traces_to}",  # it insists on one
    ]
    with _running(command, folder / "rotel.log", [grpc, http]):
        yield Collector(f"http://{grpc}", f"http://{http}")


@contextmanager
def otelcol(program: Path, folder: Path, *, metrics_to: str, traces_to: str) -> Iterator[Collector]:
    """Run the OpenTelemetry Collector with the minimal configuration that we ship."""
    grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        str(program),
        f"--config={COLLECTOR_CONFIG}",
        f"--set=receivers::otlp::protocols::grpc::endpoint={grpc}",
        f"--set=receivers::otlp::protocols::http::endpoint={http}",
        "--set=service::telemetry::metrics::level=none",
    ]
    targets = {"METRICS_ENDPOINT": metrics_to, "TRACES_ENDPOINT": traces_to}
    with _running(command, folder / "otelcol.log", [grpc, http], targets):
        yield Collector(f"http://{grpc}", f"http://{http}")


@contextmanager
def _running(
    command: Sequence[str], log: Path, addresses: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run the command until the block ends; it is ready when all its addresses accept a connection."""
    # A collector or proxy that the developer has configured is none of the test's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ROTEL_"))}
    environment.update(variables or {})
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            for address in addresses:
                while not _accepts(address):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_ready(address: str) -> None:
    """Prometheus listens before it can answer."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _get(f"http://{address}/-/ready")
            return
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _accepts(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _get(url: str) -> bytes:
    # Loopback: no proxy.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body
