"""
Draws a dashboard with live data into a PNG, to look at it without a Grafana.

    preview.py DASHBOARD.json PICTURE.png --api URL --last 600 [--var model=tiny]

Needs node, npm and chromium. The packages (600 MB) are installed once, into
.cache/dashboard-preview of the repository.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "dashboard-preview"
SITE = CACHE / "site"
PAGE_SECONDS = 25
# As in preview.jsx.
ROW_PIXELS, FRAME_PIXELS = 38, 48 + 34


def install() -> None:
    """Packages and page; the packages only when they have changed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_bytes()
    installed = CACHE / "package.json"
    if not (CACHE / "node_modules").exists() or installed.read_bytes() != wanted:
        installed.write_bytes(wanted)
        subprocess.run(["npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund"], cwd=CACHE, check=True)
    SITE.mkdir(exist_ok=True)
    shutil.copy(HERE / "bundle.mjs", CACHE)
    shutil.copy(HERE / "index.html", SITE)
    subprocess.run(["node", "bundle.mjs", str(HERE), str(SITE)], cwd=CACHE, check=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Nothing is printed per request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def draw(dashboard: Path, picture: Path, parameters: dict[str, str], width: int) -> list[dict[str, Any]]:
    """Write the picture; return title, number of series and error of each panel."""
    model = json.loads(dashboard.read_text(encoding="utf-8"))
    shutil.copy(dashboard, SITE / "dashboard.json")
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in model["panels"])
    parameters = {"dashboard": "dashboard.json", "width": str(width), **parameters}
    with served(SITE) as url, tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            f"--window-size={width},{FRAME_PIXELS + rows * ROW_PIXELS}",
            f"--virtual-time-budget={PAGE_SECONDS * 1000}",
            "--run-all-compositor-stages-before-draw",
            "--enable-logging=stderr",
            f"--screenshot={picture}",
            f"{url}/index.html?{urllib.parse.urlencode(parameters)}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    for line in done.stderr.splitlines():
        if "CONSOLE" in line and "PANELS " in line:
            summary = line.split("PANELS ", 1)[1].rsplit('", source:', 1)[0]
            found: list[dict[str, Any]] = json.loads(summary)["summary"]
            return found
    raise RuntimeError(f"the page did not finish:\n{done.stderr[-4000:]}")


def main() -> int:
    """Return 1 if a panel has no data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--api", required=True, help="Prometheus-compatible server, without /api/v1")
    parser.add_argument("--last", type=int, default=1800, help="seconds up to --end (1800)")
    parser.add_argument("--end", type=float, default=None, help="seconds since the epoch (now)")
    parser.add_argument("--export-interval", type=int, default=15, help="seconds between exports or scrapes (15)")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--theme", choices=("dark", "light"), default="dark")
    parser.add_argument("--width", type=int, default=1400)
    options = parser.parse_args()
    end = int(time.time() if options.end is None else options.end)
    parameters = {
        "api": options.api,
        "start": str(end - options.last),
        "end": str(end),
        "export-interval": str(options.export_interval),
        "theme": options.theme,
        **{f"var-{name}": value for name, value in (pair.split("=", 1) for pair in options.var)},
    }
    install()
    empty = [
        panel for panel in draw(options.dashboard, options.picture, parameters, options.width) if not panel["series"]
    ]
    for panel in empty:
        sys.stderr.write(f"no data: {panel['title']} {panel.get('error') or ''}\n")
    return 1 if empty else 0


if __name__ == "__main__":
    raise SystemExit(main())
