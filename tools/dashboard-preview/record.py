"""
Draws every dashboard from two runs of a real vLLM server under rising load.

    record.py docs/images [--seconds 20]

The first run has room for 4 sequences in a batch, the second for 16; metrics
take the way of a real service: OTLP to a collector, and on to a database.
Needs what `make test` and `preview.py` need.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "backends")]

import preview  # noqa: E402 - the path is set above
import programs  # noqa: E402

import otel_llm  # noqa: E402
from otel_llm.demo import server as demo_server  # noqa: E402
from otel_llm.demo import tiny_model  # noqa: E402
from otel_llm.demo.load import Load  # noqa: E402
from otel_llm.report.levels import Level  # noqa: E402
from otel_llm.report.receiver import Receiver  # noqa: E402

SEQUENCES = (4, 16)
CONCURRENCY = (1, 2, 4, 8, 16, 32)
SERVER = {"OTEL_LLM_SLO_TTFT": "0.5", "OTEL_LLM_SLO_TPOT": "0.05", "OTEL_LLM_TIMING": "1"}
EXPORT_SECONDS = 2


class Server(demo_server.Server):
    """The demo's server, with targets, telling its times, and room for so many sequences in a batch."""

    def __init__(self, model: Path, collector: str, log: Path, sequences: int) -> None:
        super().__init__(model, collector, log)
        self._environment |= SERVER
        self._command += ["--max-num-seqs", str(sequences)]


async def hold(server: Server, seconds: float) -> float:
    """One level of concurrency after the other; return when that began, seconds since the epoch."""
    await server.ready()
    began = time.time()
    for concurrency in CONCURRENCY:
        # Each level sends the same prompts again, which fills the prefix cache.
        await Load(server.url, demo_server.MODEL).run(Level(concurrency), seconds, server.check)
    return began


def run(server: Server, seconds: float) -> float:
    """Load a server from start to stop; return when the load began."""
    server.start()
    try:
        return asyncio.run(hold(server, seconds))
    finally:
        server.stop(grace=10)


def main() -> None:
    """Write one picture per dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each level of concurrency (20)")
    options = parser.parse_args()
    preview.install()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        model = tiny_model.build(folder / "model")
        victoria_metrics, rotel = programs.installed_program("victoria-metrics"), programs.rotel_program()
        database = running.enter_context(programs.victoria_metrics(victoria_metrics, folder))
        traces = running.enter_context(Receiver())
        traces_to = f"{traces.url}/v1/traces"
        collector = running.enter_context(
            programs.rotel(rotel, folder, metrics_to=database.otlp_metrics, traces_to=traces_to)
        )
        # The load generator is an instrumented client.
        os.environ.update(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.http,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_METRIC_EXPORT_INTERVAL=str(EXPORT_SECONDS * 1000),
        )
        otel_llm.instrument(service_name="load-generator")
        began = [
            run(Server(model, collector.http, folder / f"vllm-{sequences}.log", sequences), options.seconds)
            for sequences in SEQUENCES
        ]
        otel_llm.uninstrument()
        end = time.time()
        for dashboard in sorted((ROOT / "grafana-dashboards" / "json").glob("*.json")):
            # The load test compares the runs, the others show the second one.
            preview.draw(
                dashboard,
                options.folder / f"{dashboard.stem}.png",
                {
                    "api": database.url,
                    "start": str(int(began[-1])),
                    "end": str(int(end)),
                    "export-interval": str(EXPORT_SECONDS),
                    "var-baseline": f"{round(began[1] - began[0])}s",
                },
                width=1400,
            )


if __name__ == "__main__":
    main()
