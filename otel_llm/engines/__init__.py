"""
The engines: one file each, and this folder is the registry.

A file exports ``ENGINE``. It states its hooks, turns what they see into a
``Timeline`` and hands that to ``emit``; it imports neither its engine nor
OpenTelemetry. See docs/add-an-engine.md.
"""

from __future__ import annotations

import importlib
import pkgutil

from otel_llm.patching import Engine


def names() -> tuple[str, ...]:
    """The files of this folder, sorted; those that start with ``_`` are parts of others."""
    return tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))


def load(name: str) -> Engine:
    """Return the engine of this file. Raises ValueError if there is none."""
    if name not in names():
        raise ValueError(f"unknown engine {name!r}, known are {', '.join(names())}")
    engine: Engine = importlib.import_module(f"{__name__}.{name}").ENGINE
    return engine
