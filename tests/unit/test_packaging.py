"""The wheel in an empty environment: what it brings, and that it works without any engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp", "wrapt"}
TEST_TOOLS = (
    "pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "opentelemetry-instrumentation",
    "opentelemetry-exporter-prometheus",
)  # fmt: skip

CLOSURE = """
import json, re, sys
from importlib.metadata import distribution, distributions
from packaging.requirements import Requirement
def name(text): return re.sub(r"[-_.]+", "-", text).lower()
def needs(root):
    for line in distribution(root).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield name(requirement.name)
todo, closure = list(json.loads(sys.argv[1])), set()
while todo:
    root = todo.pop()
    if root not in closure:
        closure.add(root)
        todo += needs(root)
print(json.dumps([sorted({name(d.metadata["Name"]) for d in distributions()} - closure), sorted(needs("otel-llm"))]))
"""

pytestmark = pytest.mark.skipif("OTEL_LLM_IN_WHEEL_TEST" in os.environ, reason="this is the run inside the wheel test")


def run(*command: str | Path, **variables: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], env={**clean, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("otel_llm-*.whl")
    return built


def test_the_wheel_in_an_empty_environment(tmp_path: Path, wheel: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "packaging")
    extra, required = json.loads(run(python, "-c", CLOSURE, json.dumps(sorted(BASE)), PYTHONNOUSERSITE="1"))
    assert set(required) == BASE
    # packaging is this test's own, and is not extra if the base needs it too.
    assert set(extra) - {"pip", "setuptools", "packaging"} == {"otel-llm"}

    run(python, "-c", "import otel_llm; otel_llm.instrument(); otel_llm.uninstrument()")
    run(python, "-m", "pip", "install", "--quiet", *TEST_TOOLS)
    place = tmp_path / "elsewhere"
    tests = shutil.ignore_patterns("__pycache__", "engines", "network", "backends")
    shutil.copytree(ROOT / "tests", place / "tests", ignore=tests)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, place / file)
    suites = [place / "tests" / folder for folder in ("unit", "golden", "contract")]
    run(python, "-m", "pytest", "-q", "--rootdir", place, "-p", "no:cacheprovider", *suites,
        OTEL_LLM_IN_WHEEL_TEST="1", OTEL_LLM_REQUIRE_ENGINES="0")  # fmt: skip


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = run(sys.executable, "-m", "zipfile", "-l", wheel).splitlines()[1:]
    tops = {line.split("/")[0] for line in names}
    assert {top for top in tops if not top.startswith("otel_llm")} == set()
    assert any(line.startswith("otel_llm/py.typed") for line in names)
    assert any(line.startswith("otel_llm/autostart/sitecustomize.py") for line in names)
