"""
Draws every dashboard from two runs of a real vLLM server under rising load.

    record.py docs/images [--seconds 20] [--tape FILE]      by `make pictures`

The first run has room for 4 sequences in a batch, the second for 16; their load
generator is an instrumented client. With a tape, what was exported is kept in
that file, and drawn again from it as long as it exists.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import preview
import programs
from tape import Tape

import otel_llm
from otel_llm.demo import server as demo_server
from otel_llm.demo import tiny_model
from otel_llm.demo.load import Load
from otel_llm.report.levels import Level

SEQUENCES = (4, 16)
CONCURRENCY = (1, 2, 4, 8, 16, 32)
SERVER = {"OTEL_LLM_SLO_TTFT": "0.5", "OTEL_LLM_SLO_TPOT": "0.05", "OTEL_LLM_TIMING": "1", "OTEL_LLM_STEP_DETAIL": "1"}
EXPORT_SECONDS = 2


class Recorded(NamedTuple):
    """What was exported, and when each load began and ended, seconds since the epoch."""

    metrics: list[bytes]
    loads: list[tuple[float, float]]


class Server(demo_server.Server):
    """The demo's server, with targets, telling its times, and room for so many sequences in a batch."""

    def __init__(self, model: Path, collector: str, log: Path, sequences: int) -> None:
        super().__init__(model, collector, log)
        self._environment |= SERVER | {"OTEL_RESOURCE_ATTRIBUTES": f"otel_llm.run.id={run_id(sequences)}"}
        self._command += ["--max-num-seqs", str(sequences)]


def run_id(sequences: int) -> str:
    """What tells the run apart on the load test page."""
    return f"batch-{sequences}"


async def hold(server: Server, seconds: float) -> tuple[float, float]:
    """One level of concurrency after the other; return when that began and ended."""
    await server.ready()
    began = time.time()
    for concurrency in CONCURRENCY:
        # Each level sends the same prompts again, which fills the prefix cache.
        await Load(server.url, demo_server.MODEL).run(Level(concurrency), seconds, server.check)
    return began, time.time()


def run(server: Server, seconds: float) -> tuple[float, float]:
    """Load a server from start to stop; return when the load began and ended."""
    server.start()
    try:
        return asyncio.run(hold(server, seconds))
    finally:
        server.stop(grace=10)


def record(seconds: float) -> Recorded:
    """Both runs, this process as their client."""
    with tempfile.TemporaryDirectory() as temporary, Tape() as tape:
        folder = Path(temporary)
        model = tiny_model.build(folder / "model")
        os.environ.update(
            OTEL_EXPORTER_OTLP_ENDPOINT=tape.url,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_METRIC_EXPORT_INTERVAL=str(EXPORT_SECONDS * 1000),
        )
        otel_llm.instrument(service_name="load-generator")
        loads = [
            run(Server(model, tape.url, folder / f"vllm-{sequences}.log", sequences), seconds)
            for sequences in SEQUENCES
        ]
        otel_llm.uninstrument()
        return Recorded(tape.metrics, loads)


def draw(recorded: Recorded, folder: Path) -> None:
    """Write one picture per dashboard."""
    tape = Tape()
    tape.metrics = recorded.metrics
    victoria_metrics = programs.installed_program("victoria-metrics")
    with (
        tempfile.TemporaryDirectory() as temporary,
        programs.victoria_metrics(victoria_metrics, Path(temporary)) as database,
    ):
        tape.play_http(database.otlp_metrics)
        (first, _), (second, end) = recorded.loads
        for dashboard in sorted((preview.HERE.parents[1] / "grafana-dashboards" / "json").glob("*.json")):
            preview.draw(
                dashboard,
                folder / f"{dashboard.stem}.png",
                {
                    "api": database.url,
                    "start": str(int(second)),
                    "end": str(int(end)),
                    "export-interval": str(EXPORT_SECONDS),
                    # The load test compares the runs, the other pages show the second one.
                    "var-run": run_id(SEQUENCES[1]),
                    "var-other_run": run_id(SEQUENCES[0]),
                    "var-baseline": f"{round(second - first)}s",
                },
                width=1400,
            )


def main() -> None:
    """Record unless there is a tape, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each level of concurrency (20)")
    parser.add_argument("--tape", type=Path)
    options = parser.parse_args()
    if options.tape and options.tape.exists():
        recorded = Recorded(*pickle.loads(options.tape.read_bytes()))
    else:
        recorded = record(options.seconds)
        if options.tape:
            options.tape.write_bytes(pickle.dumps(tuple(recorded)))
    preview.install()
    draw(recorded, options.folder)


if __name__ == "__main__":
    main()
