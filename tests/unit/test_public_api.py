"""The public surface is what docs/architecture.md and README.md say, and no more."""

from __future__ import annotations

from pathlib import Path

import otel_llm

ROOT = Path(__file__).parents[2]


def test_all_is_sorted_and_importable() -> None:
    assert otel_llm.__all__ == sorted(otel_llm.__all__)
    assert all(hasattr(otel_llm, name) for name in otel_llm.__all__)


def test_every_function_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    functions = [name for name in otel_llm.__all__ if name[0].islower()]
    assert [name for name in functions if f"otel_llm.{name}(" not in readme] == []


def test_no_engine_is_instrumented_if_none_is_named(instrumented: None) -> None:
    otel_llm.instrument(engines=[])
    assert otel_llm.status().engines == {}
