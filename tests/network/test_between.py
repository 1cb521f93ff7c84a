"""What stands between client and server: TLS, and a reverse proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from link import link
from live import Recorded, serving
from test_server_edge import TICK, stepwise

BODY = {"model": "m", "prompt": "p", "stream": True}


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_TIMING", "1")


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
            pytest.fail(f"no {name}", pytrace=False)
        pytest.skip(f"no {name}")
    return found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tls(telling: None, recorded: Recorded, quiet: None, tmp_path: Path, loop: str) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    kind = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1")
    command = [program("openssl"), "req", *kind, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    options = {"ssl_keyfile": str(key), "ssl_certfile": str(certificate), "loop": loop}
    with (
        serving(stepwise, **options) as port,
        link(port, up=25, down=25) as road,
        httpx.Client(verify=False, trust_env=False) as client,
    ):
        for _ in range(2):
            recorded.attempts.clear()
            road.pieces.clear()
            assert client.post(f"https://127.0.0.1:{road.port}/v1/completions", json=BODY).status_code == 200
    recorded.wait(2)
    (attempt,) = recorded.attempts
    assert attempt.method == "paired"
    assert sum(attempt.phases().values()) == attempt.duration
    assert 50 - TICK <= attempt.phases()["network"] / 1e6 < 50 + 30
    server = recorded.timelines[-1]
    assert server.arrived is not None
    assert server.attributes["otel_llm.network.method"] == "server_tcp"


@contextlib.contextmanager
def nginx(target: int, folder: Path, settings: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(f"""
        daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
            uwsgi_temp_path {folder}; scgi_temp_path {folder};
            server {{
                listen 127.0.0.1:{port};
                location / {{ proxy_pass http://127.0.0.1:{target}; proxy_http_version 1.1; {settings} }}
            }}
        }}
    """)
    command = [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        try:
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize("buffered", [False, True], ids=["unbuffered", "buffered"])
def test_a_reverse_proxy(telling: None, recorded: Recorded, quiet: None, tmp_path: Path, buffered: bool) -> None:
    """Paired times hold across it; what the server's kernel sees ends at it."""
    settings = f"proxy_buffering {'on' if buffered else 'off'};"
    with (
        serving(stepwise) as port,
        nginx(port, tmp_path, settings) as front,
        link(front, up=25, down=25) as road,
        httpx.Client(trust_env=False) as client,
    ):
        for _ in range(2):
            recorded.attempts.clear()
            road.truth() if recorded.timelines else None
            answer: Any = client.post(f"http://127.0.0.1:{road.port}/v1/completions", json=BODY)
            assert answer.status_code == 200
        truth = road.truth()
    recorded.wait(2)
    (attempt,) = recorded.attempts
    assert attempt.method == "paired"
    assert sum(attempt.phases().values()) == attempt.duration
    assert truth.took >= 50e6
    assert attempt.phases()["network"] / 1e6 == pytest.approx(truth.took / 1e6, abs=30)
    server = recorded.timelines[-1]
    # The server sees nginx, which is near: the way behind it is not in its estimate.
    assert server.attributes["otel_llm.network.method"] == "server_tcp"
    assert float(server.attributes["otel_llm.network.duration"]) * 1e3 < 50 - TICK
