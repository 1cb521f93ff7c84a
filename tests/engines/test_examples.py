"""The examples run as their docstrings say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], env=clean, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.transformers  # for its torch
def test_own_loop() -> None:
    lines = [line for line in run("own_loop.py").splitlines() if "unaccounted" in line]
    assert len(lines) == 4
    assert all("(unaccounted 0 ns)" in line for line in lines)
    waits = sorted(float(match[1]) for line in lines if (match := re.search(r"queue +([\d.]+)", line)))
    assert len(waits) == 3
    assert waits[-1] > waits[0]


@pytest.mark.vllm
def test_offline_vllm() -> None:
    output = run("offline_vllm.py")
    assert "12 requests" in output
    assert re.search(r"unaccounted +0\.000 s", output)
    share = re.search(r"queue .* ([\d.]+)%", output)
    assert share is not None
    assert float(share[1]) > 10
