"""The import arrows of docs/architecture.md, file sizes, and what the import of the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import otel_llm

PACKAGE = Path(otel_llm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

DATA = {
    "timeline", "client_timeline", "pairing", "span_data", "conventions", "instrument_rows", "engine_instruments",
    "sanitize", "faults", "config", "health",
}  # fmt: skip
"""Standard library and each other."""

ARROWS = {
    **dict.fromkeys(DATA, DATA),
    "recording": {"faults", "timeline"},
    "engine_state": {"recording", "timeline"},
    "streams": {"faults"},
    "edge": {"faults", "pairing", "recording", "timeline"},
    "outlet": {"engine_state", "patching"},
    "servers": {"edge", "faults", "outlet", "pairing", "patching", "routes", "servers", "sse", "tcp", "timeline"},
    "clients": {
        "client_timeline",
        "clients",
        "faults",
        "outlet",
        "pairing",
        "patching",
        "routes",
        "sse",
        "tcp",
        "timeline",
    },
    "calls": {"faults"},
    "patching": {"calls", "engine_state", "faults", "tested"},
    "tested": {"faults"},
    "decorators": {"edge", "faults", "outlet", "recording", "streams", "timeline"},
    "engines": {"engine_state", "engines", "faults", "patching", "recording", "streams", "timeline"},
    "telemetry": DATA | {"telemetry", "edge", "engine_state", "recording"},
    "pipeline": {"faults", "pipeline", "span_data"},
}
"""Room -> rooms that it may import; rooms that are not listed may import all of them."""

OUTSIDE = {"wrapt": {"patching"}, "opentelemetry.sdk": {"pipeline"}, "opentelemetry": {"telemetry", "pipeline"}}
"""Package -> the rooms that may import it at all."""

TOOLS = {"demo", "doctor", "report", "testing"}
"""Programs around the library: never imported by it."""


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    typing_only = {
        child for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_import_arrows(file: Path) -> None:
    inside = room(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "otel_llm" and len(parts) > 1:
            target = parts[1]
            assert target in ARROWS.get(inside, {target}) or target == inside, f"{inside} imports {name}"
            assert target not in TOOLS or inside in TOOLS | {"cli"}, f"{inside} imports {name}"
        elif inside in DATA:
            assert parts[0] in sys.stdlib_module_names, f"{inside} imports {name}"
        else:
            for package, allowed in OUTSIDE.items():
                if name == package or name.startswith(package + "."):
                    assert inside in allowed | TOOLS, f"{inside} imports {name}"
                    break


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_stay_small(file: Path) -> None:
    limit = 150 if room(file) == "engines" else 300
    assert len(file.read_text().splitlines()) <= limit


def test_no_engine_file_imports_its_engine() -> None:
    for file in (PACKAGE / "engines").glob("*.py"):
        heavy = {name.split(".")[0] for name in imports(file)} & {"vllm", "transformers", "torch", "numpy"}
        assert not heavy, file


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("import sys, otel_llm; print(*sys.modules)").split()
    heavy = ("opentelemetry", "grpc", "google", "torch", "transformers", "vllm", "asyncio", "requests", "wrapt")
    assert not [name for name in loaded if name.split(".")[0] in heavy]


def test_importing_the_package_is_quick() -> None:
    """50 ms of CPU: the least of several starts, because other programs share this machine."""
    program = "import time; t = time.process_time(); import otel_llm; print(time.process_time() - t)"
    assert min(float(run(program)) for _ in range(7)) < 0.050


def test_instrument_imports_no_engine_and_no_exporter() -> None:
    program = "import sys, otel_llm; otel_llm.instrument(); print(*sys.modules)"
    heavy = ("grpc", "torch", "transformers", "vllm", "uvicorn")
    assert not [name for name in run(program).split() if name.split(".")[0] in heavy]
    assert "opentelemetry.sdk" not in run(program).split()
