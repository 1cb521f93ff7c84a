"""The command ``otel-llm``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from otel_llm import config, demo


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="otel-llm", description="Account for every millisecond of LLM requests.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser(
        "run",
        help="run a command with its engines instrumented",
        description="Run a command, and every Python process that it starts, with its LLM engines instrumented. "
        "Where the telemetry goes is set by the standard OTEL_* variables.",
        usage="otel-llm run [-h] -- COMMAND [ARGUMENT ...]",
    )
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    run.set_defaults(call=lambda options: _run(options.words))

    doctor = commands.add_parser("doctor", help="say what would be instrumented here, and what stands in the way")
    doctor.add_argument("--import", dest="load", action="store_true", help="import the engines and resolve every hook")
    doctor.set_defaults(call=lambda options: _doctor(load=options.load))

    show = commands.add_parser("demo", help="serve a tiny model with vLLM and show where each request's time goes")
    demo.add_arguments(show)
    show.set_defaults(call=demo.execute)

    options = parser.parse_args(argv)
    status: int = options.call(options)
    return status


def _run(words: list[str]) -> int:
    command = words[1:] if words[:1] == ["--"] else words
    if not command:
        print("otel-llm run: a command is missing, for example: otel-llm run -- vllm serve MODEL", file=sys.stderr)
        return 2
    # A sitecustomize of ours starts instrument() in each Python process.
    autostart = str(Path(__file__).parent / "autostart")
    path = [autostart, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, config.ENABLED: "1", "PYTHONPATH": os.pathsep.join(path)}
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        print(f"otel-llm run: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


def _doctor(*, load: bool) -> int:
    from otel_llm import doctor

    findings = doctor.examine(load=load)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'NO '} {finding.subject:<{width}}  {finding.detail}")
    return 0 if all(finding.ok for finding in findings) else 1
