"""What ``status()`` answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine in this process."""

    state: str
    """off, armed (waits for the engine's import), applied, or failed."""
    version: str | None
    """``__version__`` of the engine, None before its import."""
    hooks: tuple[str, ...]
    """Targets that are wrapped now."""
    reason: str
    """Why it failed, or that this version is not among the tested ones; else empty."""


@dataclass(frozen=True, slots=True)
class Status:
    """What otel-llm does in this process."""

    instrumented: bool
    engines: Mapping[str, EngineStatus]
    edges: Mapping[str, EngineStatus]
    """HTTP servers and clients, likewise."""
    exporters: Mapping[str, tuple[str, ...]]
    """Exporters of our own pipeline by signal; empty while there is none, or with the application's providers."""
    exported: Mapping[str, int]
    dropped: Mapping[str, int]
    capped: Mapping[str, int]
    """Requests without spans, because more were sampled than ``OTEL_LLM_SAMPLED_PER_SECOND`` allows."""
    errors: Mapping[str, int]
    """Errors of our own, swallowed, by place."""
