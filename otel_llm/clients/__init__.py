"""
The client edges: one file per HTTP library, and this folder is the registry.

A file exports ``CLIENT``: its hooks. Files that start with ``_`` are shared.
"""

from __future__ import annotations

import importlib
import pkgutil

from otel_llm.patching import Engine


def names() -> tuple[str, ...]:
    """The files of this folder that hook a library, sorted."""
    return tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))


def load(name: str) -> Engine:
    """Return the hooks of this file. Raises ValueError if there is none."""
    if name not in names():
        raise ValueError(f"unknown client {name!r}, known are {', '.join(names())}")
    client: Engine = importlib.import_module(f"{__name__}.{name}").CLIENT
    return client
