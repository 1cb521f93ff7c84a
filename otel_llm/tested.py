"""The versions of each engine that the tests hold otel-llm to."""

from __future__ import annotations

import re
import sys
from typing import Final

from otel_llm import faults

RANGES: Final = {"vllm": ("0.11", "0.33"), "transformers": ("4.51", "5.23")}
"""Package -> oldest and newest minor release."""


def remark(package: str) -> str:
    """Say so, in the log and here, if the imported version is outside of the range; else return nothing."""
    version = getattr(sys.modules.get(package), "__version__", "")
    found = _minor(version)
    if package not in RANGES or not found:
        return ""
    oldest, newest = RANGES[package]
    if _minor(oldest) <= found <= _minor(newest):
        return ""
    said = f"{package} {version} is outside of {oldest} to {newest}, which is tested: tried by its features"
    faults.logger.warning("otel_llm: %s", said)
    return said


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
