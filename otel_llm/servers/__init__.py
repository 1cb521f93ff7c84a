"""
The server edges: one file per HTTP server, and this folder is the registry.

``asgi`` is what they share, and a middleware for servers that have no file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Final

from otel_llm.patching import Engine

_SHARED: Final = "asgi"


def names() -> tuple[str, ...]:
    """The files of this folder that hook a server, sorted."""
    found = (file.name for file in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name != _SHARED and not name.startswith("_")))


def load(name: str) -> Engine:
    """Return the hooks of this file. Raises ValueError if there is none."""
    if name not in names():
        raise ValueError(f"unknown server {name!r}, known are {', '.join(names())}")
    server: Engine = importlib.import_module(f"{__name__}.{name}").SERVER
    return server
