"""
Runs the tests of an engine against several releases, and writes what the README says of them: ``make test-versions``.

Each release is unpacked into a folder of its own that comes before the installed one; torch and all else is
shared. Takes versions of vLLM as arguments, all of ``RUN`` without; ``transformers`` runs those of
``RUN_TRANSFORMERS`` instead, or the versions that follow it. ``--table`` rewrites the README from the last results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import versions
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/versions.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- made by tools/run_versions.py -->\n", "<!-- end -->\n"

RUN = ("0.27.1", "0.30.0", "0.32.0")
PARTS = ("offline", "async", "state", "paths", "pooling", "beside_tracing", "media", "media_offline", "parallel")
TESTS = tuple(f"tests/engines/test_vllm_{part}.py" for part in PARTS)
RUN_TRANSFORMERS = ("4.51.3", "4.57.6", "5.8.1", "5.23.0")
TESTS_TRANSFORMERS = tuple(
    str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("tests/engines/test_transformers*"))
)
RUNS = {"vllm": ("runs", RUN), "transformers": ("transformers_runs", RUN_TRANSFORMERS)}
"""Where the results are kept, and for which releases."""
BUILDS = ("torch", "torchaudio", "torchvision", "torchcodec", "triton")
"""Never fetched: the CPU build of torch serves all, the others break it."""


def unpack(package: str, number: str) -> Path:
    """Return a folder with this release, unless that is installed, and with what it needs and is not installed."""
    folder, distribution = ROOT / ".cache" / package / number, versions.WHEEL.get(package, package)
    if version(distribution) != number and not (folder / package).exists():
        wheel = versions.fetch(package, number)
        _install(folder, str(wheel))
        about = next(folder.glob(f"{distribution.replace('-', '_')}-*.dist-info"))
        exactly = package == "transformers"  # it looks at the versions of what it needs; vLLM gets along with others
        missing = [need for need in _needs(PathDistribution(about)) if not _installed(need, exactly)]
        if missing:
            _install(folder, *missing)
    return folder


def _install(folder: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run([*command, *what], check=True)


def _needs(distribution: Distribution) -> list[str]:
    needs = [Requirement(line) for line in distribution.requires or ()]
    wanted = [need for need in needs if need.name not in BUILDS]
    return [str(need).split(";")[0] for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]


def _installed(need: str, exactly: bool) -> bool:
    requirement = Requirement(need)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return False
    return not exactly or requirement.specifier.contains(found, prereleases=True)


def run(package: str, number: str) -> dict[str, int]:
    """Run the tests on this release and count how they ended."""
    paths = [str(unpack(package, number)), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OTEL_LLM_REQUIRE_ENGINES": "1"}
    told = [sys.executable, "-c", f"import {package}; print({package}.__version__)"]
    found = subprocess.run(told, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]
    if not found.startswith(number):
        raise RuntimeError(f"{package} {found} was imported, not {number}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += TESTS if package == "vllm" else TESTS_TRANSFORMERS
        subprocess.run(command, env=environment, cwd=ROOT)
        (suite,) = ElementTree.parse(report).getroot()
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return {"passed": counts["tests"] - failed - counts["skipped"], "failed": failed, "skipped": counts["skipped"]}


def sources() -> dict[str, str]:
    """Hold the hooks to the sources of every release that is claimed; gives ok, or what is missing, by release."""
    found = {}
    for requirement in versions.CLAIMED:
        package, _, number = requirement.partition("==")
        findings = versions.examine(package, versions.fetch(package, number))
        wrong = [finding.target for finding in findings if finding.unread or (finding.required and not finding.found)]
        found[requirement] = "MISSING " + ", ".join(wrong) if wrong else "ok"
    return found


def table(results: dict[str, Any]) -> str:
    """What the README says."""
    rows = ["| engine | hooks held to the sources of | run in the tests |", "|---|---|---|"]
    held = {name: [r.partition("==")[2] for r, v in results["sources"].items() if r.startswith(name + "==")] for name in
            ("vllm", "transformers")}  # fmt: skip
    broken = [f"{requirement}: {verdict}" for requirement, verdict in results["sources"].items() if verdict != "ok"]
    for name, title, key in (("vllm", "vLLM (V1)", "runs"), ("transformers", "transformers", "transformers_runs")):
        always = f"{results['installed'][name]} by `make test`"
        ran = f"on CPU, torch {results['torch']}: " + "; ".join(
            [always, *(_ended(*run) for run in results[key].items())]
        )
        rows.append(f"| {title} | {held[name][0]} to {held[name][-1]}, {len(held[name])} releases | {ran} |")
    return "\n".join([*rows, *broken]) + "\n"


def _ended(number: str, run: dict[str, int]) -> str:
    failed = f", {run['failed']} FAILED" if run["failed"] else ""
    skipped = f", {run['skipped']} skipped" if run["skipped"] else ""
    return f"{number}: {run['passed']} passed{failed}{skipped}"


def write(results: dict[str, Any]) -> None:
    """Keep the results and put them into the README."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table(results) + END + after)


def main(arguments: list[str]) -> int:
    """Return 1 if a test failed, or a target is missing."""
    if arguments != ["--table"]:
        installed = {name: version(versions.WHEEL.get(name, name)) for name in RUNS}
        about = {"torch": version("torch").partition("+")[0], "installed": installed, "sources": sources()}
        package = "transformers" if arguments[:1] == ["transformers"] else "vllm"
        key, every = RUNS[package]
        for number in arguments[package == "transformers" :] or every:
            counts = run(package, number)
            print(f"{package} {number}: {counts}", flush=True)
            results = kept()
            runs = {**results.get(key, {}), number: counts}
            write({**results, **about, key: {known: runs[known] for known in every if known in runs}})
    results = kept()
    write(results)
    failed = any(run["failed"] for run in (*results["runs"].values(), *results["transformers_runs"].values()))
    return int(failed or any(verdict != "ok" for verdict in results["sources"].values()))


def kept() -> dict[str, Any]:
    """The last results, of whichever releases there are some."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
