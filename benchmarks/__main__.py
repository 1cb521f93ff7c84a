"""
All benchmarks that need no engine, and with ``--engines`` those on real ones.

``python -m benchmarks [--engines] [--peers FOLDER] [--requests 1000000]``; peers are installed by
``benchmarks/peers.sh``. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--engines", action="store_true", help="real vLLM and transformers as well")
    options.add_argument("--peers", help="folder that benchmarks/peers.sh has filled")
    options.add_argument("--requests", type=int, default=1_000_000, help="for the memory of the process")
    chosen = options.parse_args()
    peers = ["--peers", chosen.peers] if chosen.peers else []
    runs: list[tuple[str, list[str]]] = [
        ("request_cost.py", []),
        ("edge_cost.py", []),
        ("engine_cost.py", []),
        ("process_cost.py", ["--requests", str(chosen.requests)]),
    ]
    if chosen.engines:
        runs += [("vllm_overhead.py", peers), ("transformers_overhead.py", peers)]
    failed = 0
    for name, arguments in runs:
        print(f"\n== {name}", flush=True)
        failed |= subprocess.run([sys.executable, str(HERE / name), *arguments], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
