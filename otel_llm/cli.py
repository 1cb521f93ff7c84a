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

    boards = commands.add_parser("dashboards", help="Grafana dashboards for what otel-llm measures")
    actions = boards.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="write them as JSON files, to import or to provision")
    export.add_argument("folder", type=Path)
    export.set_defaults(call=lambda options: _export(options.folder, native=options.native_histograms))
    push = actions.add_parser(
        "push", help="create or update them in a Grafana", epilog="The variable GRAFANA_TOKEN holds the access token."
    )
    push.add_argument("url", help="for example http://localhost:3000")
    push.add_argument("--dry-run", action="store_true", help="only say what would be done")
    push.set_defaults(
        call=lambda options: _push(options.url, dry_run=options.dry_run, native=options.native_histograms)
    )
    for action in (export, push):
        action.add_argument(
            "--native-histograms", action="store_true", help="for a Prometheus that stores histograms as native ones"
        )

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


def _export(folder: Path, *, native: bool) -> int:
    from otel_llm import dashboards

    for path in dashboards.export(folder, native=native):
        print(path)
    return 0


def _push(url: str, *, dry_run: bool, native: bool) -> int:
    from otel_llm import dashboards

    token = os.environ.get(dashboards.TOKEN, "").strip()  # a file that it was read from ends with a line end
    if not token:
        print(f"otel-llm dashboards push: {dashboards.TOKEN} is not set", file=sys.stderr)
        return 2
    try:
        for pushed in dashboards.push(url, token, dry_run=dry_run, native=native):
            print(f"{pushed.state:9}  {pushed.title}")
    except dashboards.GrafanaError as error:
        print(f"otel-llm dashboards push: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(*, load: bool) -> int:
    from otel_llm import doctor

    findings = doctor.examine(load=load)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'NO '} {finding.subject:<{width}}  {finding.detail}")
    return 0 if all(finding.ok for finding in findings) else 1
