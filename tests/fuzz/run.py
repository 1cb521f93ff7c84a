"""
Fuzzes one target, guided by coverage: what ``python -m tests.fuzz`` starts, with options of libFuzzer.

libFuzzer ends the process that it runs in, so each target has one of its own.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped] # `make fuzz` installs it

with atheris.instrument_imports(include=["otel_llm", "opentelemetry.trace"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name].run)
    atheris.Fuzz()
