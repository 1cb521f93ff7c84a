"""A real vLLM server at its end: what it has queued is sent, and a silent collector does not hold it up."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from otel_llm.demo.server import MODEL, Server
from otel_llm.report.receiver import Receiver
from tests.faults.programs import EXIT_LIMIT, counted, roots

pytestmark = pytest.mark.vllm


@pytest.mark.slow
def test_sigterm_sends_what_a_server_has_queued(tiny_model: Path, tmp_path: Path) -> None:
    """
    Within vLLM's own time to shut down, plus three seconds at most if the collector is silent.

    Seen to fail without the finaliser and the hooks of pipeline/exit.py: nothing arrived.
    """
    later = {"OTEL_BSP_SCHEDULE_DELAY": "100000", "OTEL_METRIC_EXPORT_INTERVAL": "100000"}

    def end(endpoint: str, log: Path) -> float:
        server = Server(tiny_model, endpoint, log)
        server._environment |= later
        server.start()
        try:
            asyncio.run(server.ready())
            for _ in range(5):
                body = json.dumps({"model": MODEL, "prompt": "A request", "max_tokens": 4}).encode()
                headers = {"content-type": "application/json"}
                urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", body, headers)).read()
            process, began = server._process, time.monotonic()
            assert process is not None
            process.terminate()
            process.wait(60)
            return time.monotonic() - began
        finally:
            server.stop(grace=1)

    with Receiver() as receiver:
        healthy = end(receiver.url, tmp_path / "log")
        assert len(roots(receiver)) == 5
        assert sum(counted(receiver)) == 5
    with socket.create_server(("127.0.0.1", 0)) as silent:
        took = end(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "log")
    assert took < healthy + EXIT_LIMIT + 1, (took, healthy)
