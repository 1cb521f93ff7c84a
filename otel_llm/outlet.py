"""Where hand-written loops and edges find emission, without importing it: None until ``instrument()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from otel_llm.engine_state import Emit
from otel_llm.patching import Capture

if TYPE_CHECKING:
    from otel_llm.client_timeline import ClientTimeline


class ClientSpan(Protocol):
    """An attempt of a client whose span has begun."""

    @property
    def headers(self) -> Mapping[str, str]:
        """W3C trace context to send along."""
        ...

    def finish(self, timeline: ClientTimeline) -> None:
        """End the span and record the attempt. Never raises."""
        ...


class BeginClient(Protocol):
    """Begins the span of an attempt."""

    def __call__(self, operation: str, model: str | None, start: int) -> ClientSpan | None:
        """``start`` is in nanoseconds since the Unix epoch. None if it cannot. Never raises."""
        ...


class Outlet(NamedTuple):
    """What ``instrument()`` sets up; the first two are what engines are given."""

    emit: Emit
    capture: Capture
    begin_client: BeginClient
    timing: bool = False
    """Whether a client that asks is told where the time of its request went."""


active: Outlet | None = None
