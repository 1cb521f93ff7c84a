"""Programs as a user would write them, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

from otel_llm.report.receiver import Receiver

REQUEST = """
def one(model="m"):
    with otel_llm.request(model=model) as r:
        r.tokens(1)
        r.tokens(1)
"""

EXIT_TIMED = """
import atexit
marks = []
atexit.register(lambda: print("EXIT", time.monotonic() - marks[0], flush=True))  # after what instrument() registers
def timed():
    atexit.register(lambda: marks.append(time.monotonic()))  # before it
"""
"""Prints how long an exit takes that calls ``timed()`` after ``instrument()``: no interpreter, no import counted."""

EXIT_LIMIT = 3.0
"""Seconds that telemetry may add to an exit, by docs/architecture.md."""

EXIT_SLACK = 0.5
"""For a machine that does other things as well."""


def environment(endpoint: str, protocol: str = "http/protobuf", **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    uncapped = {"OTEL_LLM_SAMPLED_PER_SECOND": "inf"}  # the programs send bursts and look for each request
    return {**clean, **otlp, **uncapped, "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1", **more}


def start(program: str, endpoint: str, protocol: str = "http/protobuf", **more: str) -> subprocess.Popen[str]:
    source = "import otel_llm, os, sys, time\n" + REQUEST + textwrap.dedent(program)
    command = [sys.executable, "-c", source]
    pipe = subprocess.PIPE
    variables = environment(endpoint, protocol, **more)
    return subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[str, str]:
    """What it wrote to its output and to its errors."""
    return process.communicate(timeout=timeout)


def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(port)


def roots(receiver: Receiver) -> list[Any]:
    """The spans of requests."""
    return [span for span in receiver.spans() if "otel_llm.outcome" in span.attributes]


def counted(receiver: Receiver) -> list[int]:
    """Requests by the metrics, one number per process."""
    return sorted(point.count or 0 for point in receiver.points("gen_ai.server.request.duration"))
