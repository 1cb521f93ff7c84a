"""
Settings, from arguments first and ``OTEL_LLM_*`` variables second.

Where telemetry goes is not ours to configure: the standard ``OTEL_*``
variables hold (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

ENABLED: Final = "OTEL_LLM_ENABLED"
ENGINES: Final = "OTEL_LLM_ENGINES"
PUBLIC_ENDPOINT: Final = "OTEL_LLM_PUBLIC_ENDPOINT"

_TRUE: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that can be set."""

    service_name: str | None = None
    """``service.name``; unset means ``OTEL_SERVICE_NAME``, else the SDK's default."""
    engines: tuple[str, ...] | None = None
    """Engines to instrument; None means all. ``OTEL_LLM_ENGINES``, comma-separated."""
    public_endpoint: bool = False
    """Start a new trace with a link instead of following a caller's. ``OTEL_LLM_PUBLIC_ENDPOINT``."""

    @classmethod
    def load(
        cls,
        *,
        service_name: str | None = None,
        engines: Iterable[str] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Arguments win over the environment."""
        if engines is None and (listed := environment.get(ENGINES, "").strip()):
            engines = [name.strip() for name in listed.split(",") if name.strip()]
        return cls(
            service_name=service_name,
            engines=None if engines is None else tuple(engines),
            public_endpoint=flag(PUBLIC_ENDPOINT, environment),
        )


def flag(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable says yes: 1, true, yes or on, in any case."""
    return environment.get(name, "").strip().lower() in _TRUE
