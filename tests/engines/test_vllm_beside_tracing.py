"""Beside vLLM's own tracing: one request is one span, and start-up spans go nowhere unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm
PROGRAM = Path(__file__).with_name("vllm_beside_tracing.py")
Stages = dict[str, list[dict[str, Any]]]
OURS = "text_completion tiny"
PHASES = ["preprocess", "queue", "prefill", "decode", "postprocess"]


@pytest.fixture(scope="module")
def stages(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    result = tmp_path_factory.mktemp("tracing") / "result"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    command = [sys.executable, str(PROGRAM), str(tiny_model), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Stages = json.loads(result.read_text())
    return found


def names(spans: list[dict[str, Any]]) -> list[str]:
    return sorted(span["name"] for span in spans)


def test_no_span_of_the_start_reaches_the_application_unasked(stages: Stages) -> None:
    assert stages["start, tracing not asked for"] == []
    assert names(stages["request, tracing not asked for"]) == sorted([OURS, *PHASES])


def test_what_the_user_asked_for_is_there(stages: Stages) -> None:
    assert "Load model" in names(stages["start, tracing asked for"])


def test_one_request_is_one_span_and_says_what_vllms_would(stages: Stages) -> None:
    spans = stages["request, tracing asked for"]
    assert names(spans) == sorted([OURS, *PHASES])
    (request,) = [span["attributes"] for span in spans if span["name"] == OURS]
    (native,) = [span["attributes"] for span in stages["request, not instrumented"]]
    renamed = {"gen_ai.usage.prompt_tokens": "gen_ai.usage.input_tokens"}
    renamed |= {"gen_ai.usage.completion_tokens": "gen_ai.usage.output_tokens"}
    missing = {name for name in native if renamed.get(name, name) not in request} - {"gen_ai.request.n"}
    assert not missing
    for name in ("max_tokens", "temperature", "top_p"):
        assert request[f"gen_ai.request.{name}"] == native[f"gen_ai.request.{name}"]
    assert request["gen_ai.usage.output_tokens"] == native["gen_ai.usage.completion_tokens"] == 3


def test_vllms_own_span_stays_where_ours_go_elsewhere(stages: Stages) -> None:
    assert names(stages["request, not instrumented"]) == ["llm_request"]
    assert names(stages["request, vLLM's provider"]) == ["llm_request"]
    assert names(stages["request, a provider of its own"]) == sorted([OURS, *PHASES])
