"""
How a server tells its client where the time went: names, format, and nothing else.

A client that wants to know sends ``x-otel-llm-timing: 1``. A server whose
operator allows it answers with a ``Server-Timing`` header if the answer is
plain, and with one comment before ``data: [DONE]`` if it is a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_llm.timeline import PHASES, UNSPLIT

ASK: Final = "x-otel-llm-timing"
"""Header of a request whose client wants the server's times; its value is ``1``."""

HEADER: Final = "server-timing"
"""https://www.w3.org/TR/server-timing/"""

MARK: Final = b": otel-llm "
"""How the comment begins; readers of server-sent events ignore comments."""

_VERSION: Final = 1
_LONGEST: Final = 4096
_TOTAL: Final = "otel-llm"
_NAMES: Final = (*PHASES, UNSPLIT)
_LARGEST: Final = 1 << 53
_METRIC: Final = re.compile(r"([a-z-]+)(?:;desc=([A-Za-z0-9_.-]+))?;dur=(\d{1,12}\.\d{6})")


class ServerTiming(NamedTuple):
    """A request by its server's account, up to the moment of writing; nanoseconds."""

    phases: Mapping[str, int]
    """Time per phase; their sum is the time since the request arrived."""
    engine: str
    """``gen_ai.provider.name`` of the server."""
    first_body: int | None = None
    """From arrival until the first piece of the body had been sent; None if plain."""
    first_token: int | None = None
    """From arrival until the first token-bearing event had been sent; None if plain or unknown."""
    peer_stall: int = 0
    """The part of ``network`` in which the server waited because this client did not read."""

    @property
    def total(self) -> int:
        """From arrival to the moment of writing."""
        return sum(self.phases.values())


def to_comment(timing: ServerTiming) -> bytes:
    """Write an event-stream comment with its blank line."""
    content: dict[str, Any] = {"v": _VERSION, "engine": timing.engine, "phases": dict(timing.phases)}
    for name in ("first_body", "first_token"):
        if (stamp := getattr(timing, name)) is not None:
            content[name] = stamp
    if timing.peer_stall:
        content["peer_stall"] = timing.peer_stall
    return MARK + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def from_comment(events: bytes) -> ServerTiming | None:
    """Read the last comment in these bytes; None if there is none that can be believed."""
    start = events.rfind(MARK)
    if start < 0 or (start > 0 and events[start - 1 : start] != b"\n"):
        return None
    line = events[start + len(MARK) : start + _LONGEST].partition(b"\n")[0]
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("v") != _VERSION:
        return None
    stamps = (content.get("first_body"), content.get("first_token"))
    return _believed(content.get("phases"), content.get("engine"), stamps, content.get("peer_stall", 0))


def to_header(timing: ServerTiming) -> str:
    """Write the value of a ``Server-Timing`` header: milliseconds, to the nanosecond."""
    metrics = [f"{_TOTAL};desc={timing.engine};dur={timing.total / 1e6:.6f}"]
    metrics.extend(f"{name};dur={duration / 1e6:.6f}" for name, duration in timing.phases.items())
    return ", ".join(metrics)


def from_header(value: str) -> ServerTiming | None:
    """Read the value of a ``Server-Timing`` header; metrics of others are left out."""
    found = [match.groups() for match in map(_METRIC.fullmatch, map(str.strip, value[:_LONGEST].split(","))) if match]
    engine = next((name for metric, name, _ in found if metric == _TOTAL), None)
    phases = {metric: round(float(duration) * 1e6) for metric, _, duration in found if metric in _NAMES}
    return _believed(phases, engine, (None, None), 0)


def _believed(phases: object, engine: object, stamps: tuple[object, object], peer_stall: object) -> ServerTiming | None:
    """What a server says is data from outside: known names, sane numbers, or nothing."""
    if not isinstance(phases, dict) or not phases or not isinstance(engine, str):
        return None
    if not all(name in _NAMES and _time(duration) is not None for name, duration in phases.items()):
        return None
    total, stall = sum(phases.values()), _time(peer_stall)
    if stall is None or stall > phases.get("network", 0):
        return None
    first_body, first_token = (
        stamp if (stamp := _time(value)) is not None and stamp <= total else None for value in stamps
    )
    return ServerTiming(phases, engine[:64], first_body, first_token, stall)


def _time(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None
