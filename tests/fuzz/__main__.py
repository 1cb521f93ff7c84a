"""
Coverage-guided fuzzing of all that reads the outside: ``python -m tests.fuzz [--seconds N] [TARGET ...]``.

What a target has learned is kept in .cache/fuzz and used again; what broke
something lies there too, and is printed with its traceback.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS, WORDS

CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
SLOWEST = 20
"""Seconds that one input may take."""


def fuzz(name: str, seconds: int) -> bool:
    """Say how it went in a line; False if something broke."""
    corpus, log, words = CACHE / "corpus" / name, CACHE / f"{name}.log", CACHE / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in WORDS))
    options = (
        f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-dict={words}", f"-artifact_prefix={CACHE}/{name}-",
        "-print_final_stats=1", corpus,
    )  # fmt: skip
    with log.open("w") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.run", name, *map(str, options)],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    said = log.read_text(errors="replace")
    runs = re.findall(r"^(?:stat::number_of_executed_units:\s*|#)(\d+)", said, re.MULTILINE)
    edges = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", said)
    print(
        f"{name:18} {int(runs[-1]) if runs else 0:>11,} runs  {edges[-1][0] if edges else '?':>5} edges  "
        f"{edges[-1][1] if edges else '?':>5} inputs kept  {'ok' if ended.returncode == 0 else 'BROKEN'}",
        flush=True,
    )
    if ended.returncode:
        print("\n".join(said.splitlines()[-40:]))
    return ended.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    broken = [name for name in options.targets or TARGETS if not fuzz(name, options.seconds)]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
