"""Where hand-written loops find emission, without importing it: None until ``instrument()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from otel_llm.patching import Capture
from otel_llm.timeline import Timeline


class Outlet(NamedTuple):
    """The same two functions that engines are given."""

    emit: Callable[[Timeline], None]
    capture: Capture


active: Outlet | None = None
