"""
What the benchmarks share: a sink for telemetry, arms that are switched in one process, and intervals.

Every arm runs once in every round, in random order; what is compared is the
difference to the bare arm of the same round. So whatever else the machine does
meets all of them alike.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BARE = "uninstrumented"
RESAMPLED = 2000
BLOCKS, LONG_ENOUGH, FEWEST = 10, 6, 4
"""How many times the least of some rounds is taken; of so many rounds at least; and how often for an interval."""

_SINK = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    do_GET = do_PUT = do_POST
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
import threading; threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""


@contextmanager
def sink() -> Iterator[str]:
    """Another process that takes any POST, as a collector or an agent would."""
    process = subprocess.Popen([sys.executable, "-c", _SINK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


Patch = tuple[Any, str, Any, Any]
"""Owner, attribute, what stood there (None if it was inherited), what stands there now."""


class Arms:
    """What each instrumentation puts in the place of what, so that it can be put there and taken away."""

    def __init__(self, owners: Sequence[Any]) -> None:
        self._owners = owners
        self._patches: dict[str, list[Patch]] = {BARE: []}
        self.flush: dict[str, Callable[[], object]] = {BARE: lambda: None}
        self.on: dict[str, Callable[[bool], object]] = {}
        self.missing: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """All that could be set up."""
        return list(self._patches)

    def add(
        self, name: str, set_up: Callable[[], Callable[[], object]], patches: Callable[[], list[Patch]] | None = None
    ) -> None:
        """
        Set one up; ``set_up`` returns what sends out all that is queued.

        ``patches`` says what it has patched; without it, that is seen on the
        owners. One that fails is left out, and named.
        """
        before = self._state()
        try:
            self.flush[name] = set_up()
        except Exception as error:
            self.missing[name] = f"{type(error).__name__}: {error}"[:160]
        seen = patches() if patches is not None else self._changed(before)
        if name not in self.missing:
            self._patches[name] = seen
        self._put(seen, False)

    def _changed(self, before: dict[tuple[Any, str], Any]) -> list[Patch]:
        after = self._state()
        return [(*place, before.get(place), value) for place, value in after.items() if before.get(place) is not value]

    def alias(self, name: str, of: str) -> None:
        """The same patches, told apart by ``on``."""
        self._patches[name] = self._patches[of]

    @contextmanager
    def switched_on(self, name: str) -> Iterator[None]:
        """Only this one is in place."""
        self._put(self._patches[name], True)
        if name in self.on:
            self.on[name](True)
        try:
            yield
        finally:
            if name in self.on:
                self.on[name](False)
            self._put(self._patches[name], False)

    def _state(self) -> dict[tuple[Any, str], Any]:
        return {(owner, key): value for owner in self._owners for key, value in vars(owner).items() if _plain(key)}

    @staticmethod
    def _put(patches: list[Patch], on: bool) -> None:
        for owner, key, before, after in patches:
            if on:
                setattr(owner, key, after)
            elif before is None:
                if key in vars(owner):
                    delattr(owner, key)
            elif vars(owner).get(key) is not before:
                setattr(owner, key, before)


def _plain(key: str) -> bool:
    return not key.startswith("__") or key in ("__call__", "__init__")


Found = dict[str, dict[int, Sequence[float]]]
"""By arm and round, what was measured."""


def rounds(
    arms: Arms, number: int, measure: Callable[[str], Sequence[float]], every: Mapping[str, int] | None = None
) -> Found:
    """
    Measure every arm once per round, in random order; two rounds before the first are thrown away.

    ``every`` says of arms that take long to take part in each so-manieth round alone.
    """
    found: Found = {name: {} for name in arms.names}
    for count in range(-2, number):
        here = [name for name in arms.names if count < 0 or count % (every or {}).get(name, 1) == 0]
        for name in random.sample(here, len(here)):
            with arms.switched_on(name):
                measured = measure(name)
            if count >= 0:
                found[name][count] = measured
    return found


Pair = tuple[Sequence[float], Sequence[float]]
"""What one round measured of an arm, and of the bare one."""


def pairs(found: Found, name: str) -> list[Pair]:
    """Of the rounds in which this arm took part."""
    return [(measured, found[BARE][count]) for count, measured in found[name].items()]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its bootstrap 95 % interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(RESAMPLED))
    return statistics.median(values), medians[RESAMPLED // 40], medians[-RESAMPLED // 40]


def calm(measured: Sequence[Pair], figure: Callable[[Sequence[float]], float], digits: int = 1) -> str:
    """
    What the least disturbed tenth of the rounds differs by, with its bootstrap 95 % interval.

    Whatever else the machine does makes a measurement larger, never smaller:
    so each measurement counts with its lowest decile, and ``figure`` says what
    follows from them.
    """

    def difference(some: Sequence[Pair]) -> float:
        ours, bare = ([_tenth(values) for values in zip(*each, strict=True)] for each in zip(*some, strict=True))
        return figure(ours) - figure(bare)

    again = sorted(difference(random.choices(measured, k=len(measured))) for _ in range(RESAMPLED // 4))
    low, high = again[len(again) // 40], again[-len(again) // 40]
    return f"{difference(measured):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _tenth(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def least(measured: Sequence[Pair], figure: Callable[[Sequence[float]], float], digits: int = 1) -> str:
    """
    What the least of some rounds in a row differs by, as the budgets are stated, of several such blocks.

    With too few blocks for an interval it is that of all rounds.
    """

    def difference(some: Sequence[Pair]) -> float:
        ours, bare = ([min(values) for values in zip(*each, strict=True)] for each in zip(*some, strict=True))
        return figure(ours) - figure(bare)

    blocks = min(BLOCKS, len(measured) // LONG_ENOUGH)
    if blocks < FEWEST:
        return f"{difference(measured):.{digits}f}"
    cuts = [len(measured) * count // blocks for count in range(blocks + 1)]
    return cell([difference(measured[begin:end]) for begin, end in itertools.pairwise(cuts)], digits)


def cell(values: Sequence[float], digits: int = 1) -> str:
    """As it stands in a table: median [low, high]."""
    middle, low, high = interval(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def show(found: Found, title: str, figure: Callable[[Sequence[float]], float], digits: int = 1) -> None:
    """Print what each arm adds to the bare one: median of the pairs, calmest tenth, and least."""
    bare = [figure(times) for times in found[BARE].values()]
    print(f"  {title}; without any it takes {cell(bare, digits)}")
    for name in found:
        if name != BARE:
            both = pairs(found, name)
            middle = cell([figure(ours) - figure(base) for ours, base in both], digits)
            calmest, lowest = calm(both, figure, digits), least(both, figure, digits)
            print(f"    {name:26}{len(both):>4} rounds{middle:>26}{calmest:>26}{lowest:>26}")


def with_peers(run: Callable[[str, int], None], description: str | None, usual_rounds: int) -> None:
    """
    ``--peers`` and ``--rounds`` of a benchmark, which is given the address of a sink and the number of rounds.

    Peers are importable behind the packages of this environment.
    """
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--peers", help="folder that benchmarks/peers.sh has filled")
    options.add_argument("--rounds", type=int, default=usual_rounds)
    chosen = options.parse_args()
    for peer in sorted(Path(chosen.peers).iterdir()) if chosen.peers else ():
        sys.path.append(str(peer))
    with sink() as url:
        run(url, chosen.rounds)


def machine(*packages: str) -> str:
    """Where and with which versions."""
    model = next(
        (line.partition(":")[2].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = [f"{name} {found}" for name in packages if (found := _version(name))]
    where = f"{model}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    return f"{where}; {', '.join(versions)}"


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
