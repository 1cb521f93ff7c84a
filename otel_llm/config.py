"""
Settings, from arguments first and ``OTEL_LLM_*`` variables second.

Where telemetry goes is not ours to configure: the standard ``OTEL_*``
variables hold (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

ENABLED: Final = "OTEL_LLM_ENABLED"
ENGINES: Final = "OTEL_LLM_ENGINES"
SLO_TTFT: Final = "OTEL_LLM_SLO_TTFT"
SLO_TPOT: Final = "OTEL_LLM_SLO_TPOT"
PUBLIC_ENDPOINT: Final = "OTEL_LLM_PUBLIC_ENDPOINT"
TIMING: Final = "OTEL_LLM_TIMING"
STEP_DETAIL: Final = "OTEL_LLM_STEP_DETAIL"
DEVICE_TIMING: Final = "OTEL_LLM_DEVICE_TIMING"
SAMPLED_PER_SECOND: Final = "OTEL_LLM_SAMPLED_PER_SECOND"

SAMPLED_DEFAULT: Final = 100.0
"""Keeps what spans cost to a few percent of one processor, however many requests there are."""

_TRUE: Final = frozenset({"1", "true", "yes", "on"})


class Targets(NamedTuple):
    """Service level objectives of one request, seconds; None where there is no target."""

    ttft: float | None = None
    tpot: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that can be set."""

    service_name: str | None = None
    """``service.name``; unset means ``OTEL_SERVICE_NAME``, else the SDK's default."""
    engines: tuple[str, ...] | None = None
    """Engines to instrument; None means all. ``OTEL_LLM_ENGINES``, comma-separated."""
    targets: Targets | None = None
    """Targets of a good request, ``OTEL_LLM_SLO_TTFT`` and ``OTEL_LLM_SLO_TPOT``; None counts no goodput."""
    public_endpoint: bool = False
    """Start a new trace with a link instead of following a caller's. ``OTEL_LLM_PUBLIC_ENDPOINT``."""
    timing: bool = False
    """Tell a client that asks for it where the time of its request went. ``OTEL_LLM_TIMING``."""
    step_detail: bool = False
    """Measure each step of an engine: its duration, and its tokens by phase. ``OTEL_LLM_STEP_DETAIL``."""
    device_timing: bool = False
    """Ask the device, by events, how long the host waited for it. ``OTEL_LLM_DEVICE_TIMING``."""
    sampled_per_second: float = SAMPLED_DEFAULT
    """Requests per second and process that may have spans. ``OTEL_LLM_SAMPLED_PER_SECOND``; ``inf`` lifts the cap."""

    @classmethod
    def load(
        cls,
        *,
        service_name: str | None = None,
        engines: Iterable[str] | None = None,
        slo: Mapping[str, float] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Settings:
        """
        Arguments win over the environment.

        Raises ValueError for a target that is unknown or not a positive number, and for a negative cap.
        """
        if engines is None and (listed := environment.get(ENGINES, "").strip()):
            engines = [name.strip() for name in listed.split(",") if name.strip()]
        return cls(
            service_name=service_name,
            engines=None if engines is None else tuple(engines),
            targets=_targets(slo, environment),
            public_endpoint=flag(PUBLIC_ENDPOINT, environment),
            timing=flag(TIMING, environment),
            step_detail=flag(STEP_DETAIL, environment),
            device_timing=flag(DEVICE_TIMING, environment),
            sampled_per_second=_cap(environment),
        )

    @property
    def details(self) -> tuple[bool, bool]:
        """What engines are to measure beyond the default, in the order of ``patching.Probe``."""
        return self.step_detail, self.device_timing


def flag(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable says yes: 1, true, yes or on, in any case."""
    return environment.get(name, "").strip().lower() in _TRUE


def _cap(environment: Mapping[str, str]) -> float:
    cap = float(environment.get(SAMPLED_PER_SECOND, "").strip() or SAMPLED_DEFAULT)
    if not cap >= 0:
        raise ValueError(f"{SAMPLED_PER_SECOND} is a number of requests per second")
    return cap


def _targets(slo: Mapping[str, float] | None, environment: Mapping[str, str]) -> Targets | None:
    if slo is None:
        variables = {"ttft": environment.get(SLO_TTFT, "").strip(), "tpot": environment.get(SLO_TPOT, "").strip()}
        slo = {name: float(value) for name, value in variables.items() if value}
    if unknown := slo.keys() - set(Targets._fields):
        raise ValueError(f"unknown targets {sorted(unknown)}, known are {list(Targets._fields)}")
    if not all(0 < seconds < float("inf") for seconds in slo.values()):
        raise ValueError("a target is a positive number of seconds")
    return Targets(**slo) if slo else None
