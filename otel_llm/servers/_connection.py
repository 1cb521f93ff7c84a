"""What is known of a connection, and when which part of a request came over it."""

from __future__ import annotations

from typing import Any


class Connection:
    """What a server knows beyond ASGI. This one knows nothing."""

    __slots__ = ("arrived", "flow", "parsed", "peer_limited_us", "received", "transport")

    def __init__(self) -> None:
        self.arrived: int | None = None
        self.parsed: int | None = None
        self.received: int | None = None
        self.transport: Any = None
        """An asyncio transport."""
        self.flow: Any = None
        """Has ``write_paused``: whether the next send must wait for the peer."""
        self.peer_limited_us: int | None = None
        """``TcpInfo.peer_limited_us`` at the start of the request."""

    def gone(self) -> bool | None:
        """Whether the peer has disconnected, None if the server does not say."""
        return None
