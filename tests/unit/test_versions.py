"""What the README and the library say of versions is what was run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_llm import tested

TOOLS = Path(__file__).parents[2] / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="the wheel holds no tools")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    return runpy.run_path(str(TOOLS / "run_versions.py"))


def test_the_readme_shows_the_last_results(tool: dict[str, Any]) -> None:
    results = json.loads(tool["RESULTS"].read_text())
    shown = tool["README"].read_text().partition(tool["BEGIN"])[2].partition(tool["END"])[0]
    assert shown == tool["table"](results), "run `python tools/run_versions.py --table`"


def test_the_last_results_show_no_failure(tool: dict[str, Any]) -> None:
    """After a change of what is claimed: `make test-versions`."""
    results = json.loads(tool["RESULTS"].read_text())
    assert list(results["sources"]) == tool["versions"].CLAIMED
    assert set(results["sources"].values()) == {"ok"}
    for key, releases in tool["RUNS"].values():
        assert set(results[key]) <= set(releases)
        assert all(run["passed"] and not run["failed"] for run in results[key].values())


def test_the_library_knows_the_range(tool: dict[str, Any]) -> None:
    for package, (oldest, newest) in tested.RANGES.items():
        claimed = [r.partition("==")[2] for r in tool["versions"].CLAIMED if r.startswith(f"{package}==")]
        assert claimed[0].rpartition(".")[0] == oldest
        assert claimed[-1].rpartition(".")[0] == newest
