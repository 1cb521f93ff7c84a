"""Layouts of processes: data parallel cores, and cores whose clock is not that of the frontend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm
PROGRAM = Path(__file__).with_name("vllm_two_cores.py")
SHIFT = 100_000
"""Seconds by which the engine cores' monotonic clock is ahead."""


def shifted(folder: Path) -> Path:
    """
    An executable that runs Python with another monotonic clock.

    In a time namespace of its own where that is allowed, else with a clock that is changed inside of Python.
    """
    executable = folder / "python"
    allowed = subprocess.run(["unshare", "--time", "true"], capture_output=True).returncode == 0
    if allowed:
        command = f"unshare --time --monotonic {SHIFT} --fork --kill-child -- {sys.executable}"
    else:
        (folder / "sitecustomize.py").write_text(
            "import time\n"
            "def ahead(clock, by): return lambda: clock() + by\n"
            f"time.monotonic = ahead(time.monotonic, {SHIFT})\n"
            f"time.monotonic_ns = ahead(time.monotonic_ns, {SHIFT * 10**9})\n"
        )
        command = f"env PYTHONPATH={folder}:$PYTHONPATH {sys.executable}"
    executable.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    executable.chmod(0o755)
    return executable


def run(model: Path, executable: Path, result: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[2]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(PROGRAM), str(model), str(executable), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    about, requests = json.loads(result.read_text())
    return about, requests


def test_two_cores_with_another_clock(tiny_model: Path, tmp_path: Path) -> None:
    about, requests = run(tiny_model, shifted(tmp_path), tmp_path / "result")
    assert len(requests) == 24
    assert len(about["served"]) == 2, "both cores took part"
    assert min(about["served"].values()) > 0
    # A request of 8 tokens is in 8 batches: its whole prompt in the first. Two engines are never added up.
    assert about["engines"]["otel_llm.engine.batch.size"] == {i: 8 * n for i, n in about["served"].items()}
    assert about["engines"]["otel_llm.engine.requests"] == {"0": 0, "1": 0}
    assert about["left"] == 0
    for request in requests:
        assert request["attributes"]["otel_llm.engine.clock"] == "anchored"
        assert list(request["phases"]) == ["preprocess", "queue", "prefill", "decode", "postprocess"]
        assert sum(request["phases"].values()) < 60e9, "no difference is taken between two clocks"
