"""`otel-llm dashboards`: files on disk, and a Grafana that is spoken to as its HTTP API is documented."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import promql
import pytest

from otel_llm import dashboards
from otel_llm.cli import main

FOLDER = Path(__file__).resolve().parents[2] / "grafana-dashboards" / "json"
TOKEN = "secret-of-the-test"


class Grafana(ThreadingHTTPServer):
    """Keeps dashboards by uid and numbers their versions, like the real one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kept: dict[str, dict[str, Any]] = {}
        self.writes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Grafana

    def do_GET(self) -> None:
        found = self.server.kept.get(self.path.rpartition("/")[2])
        if self.path.startswith("/api/dashboards/uid/") and found:
            self.answer(200, {"dashboard": found, "meta": {"version": found["version"]}})
        else:
            self.answer(404, {"message": "Dashboard not found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/api/dashboards/db"
        assert body["overwrite"]
        model = body["dashboard"]
        version = self.server.kept.get(model["uid"], {}).get("version", 0) + 1
        self.server.kept[model["uid"]] = {**model, "id": len(self.server.kept) + 1, "version": version}
        self.server.writes += 1
        self.answer(200, {"status": "success", "uid": model["uid"], "version": version})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, body = 401, {"message": "Unauthorized"}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Stay silent."""


@pytest.fixture
def grafana(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grafana]:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Grafana()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_export_writes_every_dashboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "folder"
    assert main(["dashboards", "export", str(target)]) == 0
    expected = {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == expected
    assert capsys.readouterr().out.splitlines() == [str(target / name) for name in sorted(expected)]


def test_export_for_native_histograms_asks_for_no_part_of_an_explicit_one(tmp_path: Path) -> None:
    assert main(["dashboards", "export", "--native-histograms", str(tmp_path)]) == 0
    parts = [name for name, instrument in promql.metrics().items() if instrument.kind == "histogram"]
    for path in FOLDER.glob("*.json"):
        explicit, native = path.read_text(encoding="utf-8"), (tmp_path / path.name).read_text(encoding="utf-8")
        assert [part for part in parts if part in explicit]
        assert not [part for part in parts if part in native]
        assert json.loads(native)["uid"] == json.loads(explicit)["uid"]


def test_push_creates_then_leaves_alone_then_repairs(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(dashboards.files())
    assert main(["dashboards", "push", grafana.url]) == 0
    assert grafana.writes == count
    assert capsys.readouterr().out.count("created") == count

    assert main(["dashboards", "push", grafana.url + "/"]) == 0
    assert grafana.writes == count
    assert capsys.readouterr().out.count("unchanged") == count

    grafana.kept["otel-llm-slo"]["title"] = "changed by hand"
    assert [pushed.state for pushed in dashboards.push(grafana.url, TOKEN)].count("updated") == 1
    assert grafana.kept["otel-llm-slo"]["title"] != "changed by hand"


def test_dry_run_writes_nothing(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "push", "--dry-run", grafana.url]) == 0
    assert grafana.writes == 0
    assert capsys.readouterr().out.count("created") == len(dashboards.files())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "file:///etc"])
def test_push_to_what_is_no_grafana_says_so(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert main(["dashboards", "push", url]) == 1
    message = capsys.readouterr().err
    assert url in message
    assert TOKEN not in message


def test_push_with_a_wrong_token_says_so(
    grafana: Grafana, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", "another")
    assert main(["dashboards", "push", grafana.url]) == 1
    assert "401" in capsys.readouterr().err


def test_push_without_a_token_asks_nobody(
    grafana: Grafana, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GRAFANA_TOKEN")
    assert main(["dashboards", "push", grafana.url]) == 2
    assert "GRAFANA_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b'{"dashboard": []}',
        b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"\x1b[31m",
    ],
    ids=["nothing", "a list", "another dashboard", "depth", "cut off", "no HTTP"],
)
def test_push_to_what_answers_as_no_grafana_does(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail with whatever is JSON taken for a dashboard: a traceback."""
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    whole = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + answer if answer[:1] in b"{[" else answer
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once() -> None:
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(whole)

        thread = threading.Thread(target=once)
        thread.start()
        assert main(["dashboards", "push", f"http://127.0.0.1:{listening.getsockname()[1]}"]) == 1
        thread.join()
    said = capsys.readouterr().err.removesuffix("\n")
    assert "did not answer as a Grafana does" in said
    assert said.isprintable()


@pytest.mark.parametrize("url", ["http://[", "grafana", "http://h /"])
def test_push_to_what_is_no_address(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail with an address that is taken apart unguarded: a traceback."""
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    assert main(["dashboards", "push", url]) == 1
    assert url in capsys.readouterr().err


@pytest.mark.parametrize(("end", "status"), [("\r\n", 0), ("\rx", 1), ("é", 1)])
def test_a_token_is_in_no_message(
    end: str, status: int, grafana: Grafana, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail with the token as it stands in a file: the error for a header with a line end quotes it."""
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN + end)
    assert main(["dashboards", "push", "--dry-run", grafana.url]) == status
    assert TOKEN not in capsys.readouterr().err
