"""What a row of ``conventions`` consists of, and the families of buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

LATENCY_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75,
    1.25, 1.5, 1.75, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 17.5, 25.5, 40.5, 60.5, 90.5, 180.5, 600.5,
)  # fmt: skip
"""
Times of a whole request or phase: steps of 1.2 to 1.5 where targets are set.

No bound is an integer: ``le="1"`` and ``le="1.0"`` differ between OTLP and scrape.
"""

TOKEN_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075,
    0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 0.75, 1.25, 2.5,
)  # fmt: skip
"""Times per output token or step: from a small model on a fast GPU to a large one on CPU."""

BATCH_REQUESTS: Final = (
    1.5, 2.5, 4.5, 6.5, 8.5, 12.5, 16.5, 24.5, 32.5, 48.5, 64.5, 96.5, 128.5, 192.5, 256.5, 384.5, 512.5, 1024.5,
)  # fmt: skip
"""Requests in a step."""

STEP_TOKENS: Final = (
    1.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 256.5, 512.5, 1024.5, 2048.5, 4096.5, 8192.5, 16384.5, 32768.5,
)  # fmt: skip
"""Tokens in a step: the usual budgets are powers of two."""

Type = Literal["string", "int", "double", "boolean", "string[]"]
Kind = Literal["histogram", "counter", "observable_counter", "observable_gauge"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A key on a span or a metric."""

    name: str
    type: Type
    description: str
    values: tuple[str, ...] = ()
    """All values that occur, where they are a closed set."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()
