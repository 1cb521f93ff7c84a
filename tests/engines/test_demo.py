"""The demo as a user starts it: a real vLLM server, real requests, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "otel_llm.demo", "--levels", "1,3", "--seconds", "2")


def started(scratch: Path, html: Path) -> subprocess.Popen[str]:
    # What is set up for this test run must not reach into the demo.
    environment = os.environ | {"TMPDIR": str(scratch), "OTEL_SDK_DISABLED": "true", "VLLM_PLUGINS": ""}
    return subprocess.Popen(
        [*COMMAND, "--html", str(html)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def served_from(scratch: Path) -> list[str]:
    """Processes of the server, by name: all that write to its log, which they inherit."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if (process / "fd" / "1").readlink().is_relative_to(scratch):
                    found.append((process / "cmdline").read_text().replace("\0", " ").strip())
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name: vLLM puts sockets there."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_the_demo_accounts_for_every_request_and_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    html = tmp_path / "page.html"
    with started(scratch, html) as demo:
        output, _ = demo.communicate(timeout=400)
    assert demo.returncode == 0, output
    assert served_from(scratch) == []
    assert list(scratch.iterdir()) == []

    residuals = re.search(r"largest residual +(\S+) ns +(\S+) ns", output)
    assert residuals is not None, output
    assert [abs(int(part.replace(",", ""))) <= 1000 for part in residuals.groups()] == [True, True]
    for phase in ("queue", "prefill", "decode"):
        assert re.search(rf"■ {phase} +\S+ / \S+ +\S+ / \S+", output), output
    figures = r"([\d,]+) requests and ([\d,.]+) s"
    metrics = re.search(rf"duration holds {figures}, .* the spans {figures}\.", " ".join(output.split()))
    assert metrics is not None, output
    assert metrics[1] == metrics[3]  # counted once by histograms, once by spans
    assert metrics[2] == metrics[4]
    page = html.read_text()
    assert "3 in flight" in page
    assert page.count("Plotly.newPlot(") == 3


def test_ctrl_c_ends_the_server_and_all_that_it_started(tmp_path: Path, scratch: Path) -> None:
    html = tmp_path / "page.html"
    with started(scratch, html) as demo:
        deadline = time.monotonic() + 300
        # The engine core is a grandchild of the demo: the hardest to be rid of.
        while not any("EngineCore" in name for name in served_from(scratch)):
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + signal.SIGINT, output
    assert "Stopped" in output
    assert served_from(scratch) == []
    assert list(scratch.iterdir()) == []
    assert not html.exists()
