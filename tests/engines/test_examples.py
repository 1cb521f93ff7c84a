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


@pytest.mark.transformers
def test_a_service_that_batches() -> None:
    lines = run("batching_fastapi.py").splitlines()
    found = [re.fullmatch(r"(\d+) \+ (\d+) tokens .* = (.*)  \(unaccounted 0 ns\)", line) for line in lines]
    requests = [match for match in found if match]
    assert len(requests) == len(lines) == 12, lines
    assert sorted(int(match[2]) for match in requests) == list(range(8, 20)), "each is counted for itself"
    phases = [{part.split()[0]: float(part.split()[1]) for part in match[3].split("  ")} for match in requests]
    for names in (list(parts) for parts in phases):
        assert [name for name in names if name not in ("accept", "network")] == [
            *("preprocess", "queue", "prefill", "decode", "postprocess")
        ]
    waits = sorted(parts["queue"] for parts in phases)
    computing = [parts["prefill"] + parts["decode"] for parts in phases]
    # Three batches of four: who is in the last one waits for the two before it.
    assert waits[-1] > 1.5 * min(computing)
    assert waits[0] < min(computing)


@pytest.mark.vllm
def test_offline_vllm() -> None:
    output = run("offline_vllm.py")
    assert "12 requests" in output
    assert re.search(r"unaccounted +0\.000 s", output)
    share = re.search(r"queue .* ([\d.]+)%", output)
    assert share is not None
    assert float(share[1]) > 10
