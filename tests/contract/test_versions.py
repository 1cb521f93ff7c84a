"""The reader of old sources finds what is there, and what is not: on a wheel made here."""

from __future__ import annotations

import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools/versions.py"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="the wheel holds no tools")

OUTPUTS = """\
class OutputProcessor:
    def add_request(self, {request}, prompt): ...
    def process_outputs(self, outputs, engine_core_timestamp=None): ...
"""
LOGGERS = """\
class Base:
    def __init__(self, enable_default_loggers=True): ...
class StatLoggerManager(Base):
    def record(self, stats): ...
"""


def findings(tmp_path: Path, request: str) -> dict[str, Any]:
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/v1/metrics/loggers.py", LOGGERS)
        archive.writestr("vllm/v1/engine/output_processor.py", OUTPUTS.format(request=request))
    found = runpy.run_path(str(TOOL))["examine"]("vllm", wheel)
    return {finding.target.rpartition(":")[2]: finding for finding in found}


def test_what_is_there_is_found_inherited_or_not(tmp_path: Path) -> None:
    found = findings(tmp_path, "request")
    assert found["OutputProcessor.add_request"].found
    assert found["OutputProcessor.add_request"].unread == ()
    assert found["StatLoggerManager.__init__"].found
    assert found["AsyncLLM.generate"].found is None


def test_a_renamed_argument_is_found(tmp_path: Path) -> None:
    assert findings(tmp_path, "asked")["OutputProcessor.add_request"].unread == ("request",)


def test_a_renamed_argument_is_found_where_it_is_read_later(tmp_path: Path) -> None:
    unread = findings(tmp_path, "request")["StatLoggerManager.record"].unread
    assert unread == ("engine_idx", "iteration_stats", "scheduler_stats")


def test_a_renamed_argument_of_a_function_that_takes_its_place_is_found(tmp_path: Path) -> None:
    unread = findings(tmp_path, "request")["OutputProcessor.process_outputs"].unread
    assert unread == ("engine_core_outputs",)
