"""
One attempt of a client, from its first act to the last byte of the answer.

All stamps are monotonic nanoseconds of the client's clock; what the server
says of itself are durations of the server's clock. No difference is ever taken
between the two clocks, so none has to agree with the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from otel_llm.pairing import ServerTiming
from otel_llm.timeline import ENGINE_PHASES, PHASES, UNSPLIT, Outcome

CLIENT_PHASES: Final = ("connect", "network", "consumer", *(name for name in PHASES if name != "network"), UNSPLIT)
"""The parts of a client's time. ``network`` is one part: its two directions cannot be told apart."""

METHODS: Final = ("paired", "client_engine", "client_tcp", "server_tcp")
"""How a network time came about, best first; the last one is the server's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTimeline:
    """
    One finished attempt. A retry is an attempt of its own.

    ``phases()`` adds up to ``duration`` exactly. Without a server that tells
    its times, what is not known to be anything else is ``unsplit``.
    """

    operation: str
    """``gen_ai.operation.name``."""
    provider: str
    """``gen_ai.provider.name``: the server's engine if it says so, else whose API it is."""
    started: int
    """The HTTP library begins with this attempt."""
    ended: int
    """The last byte of the answer, or the end of a failed attempt."""
    wall_offset: int
    """Wall clock minus monotonic clock, nanoseconds."""
    sent: int | None = None
    """The connection stands, the first byte of the request leaves."""
    answered: int | None = None
    """The head of the answer is there."""
    first_body: int | None = None
    """The first piece of the body is there."""
    first_token: int | None = None
    """The first event that bears a token is there."""
    backlog: int = 0
    """Nanoseconds by which the caller, holding the stream, had fallen behind at its end, at most."""
    first_backlog: int = 0
    """The same at the first piece of the body."""
    server: ServerTiming | None = None
    """What the server said, if it says anything."""
    engine: ServerTiming | None = None
    """What vLLM itself says of the engine (``--enable-per-request-metrics``), if the server says nothing."""
    rtt: int | None = None
    """Smoothed round trip by the kernel's account, nanoseconds."""
    outcome: Outcome = "ok"
    error_type: str | None = None
    status: int | None = None
    """HTTP status of the answer."""
    model: str | None = None
    address: str | None = None
    port: int | None = None
    resend: int = 0
    """How many attempts of the same request the caller's library counted before this one."""

    @property
    def duration(self) -> int:
        """Nanoseconds from start to end: what the phases add up to."""
        return self.ended - self.started

    @property
    def method(self) -> str | None:
        """How ``network`` was measured; None if it is unknown."""
        if "network" not in self.phases():
            return None
        if self.server is not None:
            return "paired"
        return "client_tcp" if self.engine is None else "client_engine"

    def phases(self) -> dict[str, int]:
        """
        Nanoseconds per part; they add up to ``duration`` exactly.

        With a paired server ``network`` is what is left of the client's time
        when the server's is taken away. It may be slightly negative (two
        clocks never run alike); that is shown, not repaired. Of the others
        those without length are left out: a network of 0 is known to be that.
        """
        if self.sent is None:
            return {UNSPLIT: self.duration} if self.duration else {}
        parts = {"connect": self.sent - self.started}
        if self.outcome == "ok" and self.server is not None:
            self._paired(self.server, parts)
        else:
            self._alone(parts)
        return {name: duration for name, duration in parts.items() if duration or name == "network"}

    def time_to_first_chunk(self) -> int | None:
        """Nanoseconds from start to the first event that bears a token."""
        return None if self.first_token is None else self.first_token - self.started

    def _paired(self, server: ServerTiming, parts: dict[str, int]) -> None:
        assert self.sent is not None
        away = self.ended - self.sent - server.total
        late = away
        if self.first_body is not None and server.first_body is not None:
            late = (self.ended - self.first_body) - (server.total - server.first_body) + self.first_backlog
        consumer = min(max(late, 0), self.backlog)
        # What the server gives as network is the upload and, at the end, its wait
        # for the peer; if that is because the peer does not read, it is the consumer.
        waited = server.phases.get("network", 0) - server.peer_stall
        parts.update({name: duration for name, duration in server.phases.items() if name != "network"})
        parts["network"] = away - consumer + waited
        parts["consumer"] = consumer + server.peer_stall

    def _alone(self, parts: dict[str, int]) -> None:
        assert self.sent is not None
        rest = self.ended - self.sent
        if self.outcome == "ok":
            known = {} if self.engine is None else {name: self.engine.phases.get(name, 0) for name in ENGINE_PHASES}
            if sum(known.values()) > rest:  # the engine's figures are rounded, or not about this request
                known = {}
            parts.update(known)
            rest -= sum(known.values())
            if self.rtt is not None and self.rtt <= rest:
                parts["network"] = self.rtt
                rest -= self.rtt
        parts[UNSPLIT] = rest
