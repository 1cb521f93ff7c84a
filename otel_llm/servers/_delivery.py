"""The way of the last bytes to the peer, by the kernel's account. Linux and asyncio; elsewhere unknown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from otel_llm import faults, tcp
from otel_llm.edge import Delivery, ServerEdge
from otel_llm.servers._connection import Connection

LIMIT_SECONDS: Final = 10.0
"""How long the last bytes are followed; a peer that takes longer is reported with this time."""

NEARBY_US: Final = 1000
"""Round trip below which what is on its way is as good as delivered."""


def measure(server: ServerEdge, connection: Connection, done: Callable[[], None]) -> None:
    """
    Write ``server.delivery`` and call ``done``: at once, or when the last bytes have arrived.

    Acknowledgements are followed by count, so that a further answer on the
    same connection does not disturb.
    """
    transport = connection.transport
    socket = None if transport is None else transport.get_extra_info("socket")
    info, waiting = tcp.read(socket), tcp.outstanding(socket)
    if transport is None or info is None or waiting is None:
        done()
        return
    waiting += transport.get_write_buffer_size()
    limited_us = 0 if connection.peer_limited_us is None else info.peer_limited_us - connection.peer_limited_us
    if waiting == 0 or (info.rtt_us < NEARBY_US and info.unsent == 0):
        server.delivery = Delivery(info.rtt_us * 1000, limited_us * 1000)
        done()
        return
    target, begin, shortest, smoothed = info.acknowledged + waiting, time.monotonic_ns(), info.min_rtt_us, info.rtt_us
    loop = asyncio.get_running_loop()

    def look(pause: float) -> None:
        try:
            now, elapsed = tcp.read(socket), time.monotonic_ns() - begin
            if now is not None and now.acknowledged < target and elapsed < LIMIT_SECONDS * 1e9:
                loop.call_later(pause, look, pause * 1.1)
                return
            if now is not None:
                limited = limited_us + now.peer_limited_us - info.peer_limited_us
                travel = smoothed * 1000 if limited else max(elapsed, smoothed * 1000)
                server.delivery = Delivery(travel, limited * 1000)
            else:  # closed by the peer, who has had it all, at a time that nobody saw
                server.delivery = Delivery(smoothed * 1000, limited_us * 1000)
        except Exception as error:
            faults.swallow("asgi.delivery", error)
        done()

    loop.call_later(shortest / 1e6, look, max(shortest / 16e6, 0.001))
