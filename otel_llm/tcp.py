"""
What the kernel knows about a TCP connection (Linux; elsewhere nothing is known).

Offsets are those of ``struct tcp_info`` in include/uapi/linux/tcp.h; fields up
to ``tcpi_rwnd_limited`` exist since Linux 4.10.
"""

from __future__ import annotations

import array
import socket
import struct
from typing import Any, Final, NamedTuple

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_FIELDS: Final = struct.Struct("=52xI12xI48xQ16xII24xQ")
_SIOCOUTQ: Final = 0x5411
_FIONREAD: Final = 0x541B


class TcpInfo(NamedTuple):
    """One reading; describes the hop to the nearest peer that terminates TCP."""

    last_received_ms: int
    """Milliseconds since the last data packet arrived, in steps of a kernel tick."""
    rtt_us: int
    """Smoothed round trip, microseconds; grows with queues on the way and with late acknowledgements."""
    acknowledged: int
    """Bytes that the peer has acknowledged since the connection was made."""
    unsent: int
    """Bytes in the kernel that are not on their way yet."""
    min_rtt_us: int
    """Shortest round trip of late, microseconds."""
    peer_limited_us: int
    """Time in which the peer's full receive buffer held up sending, microseconds since the connection was made."""


def read(connection: Any) -> TcpInfo | None:
    """Read a socket, about 1 us; None if it is no open TCP socket or the kernel cannot tell."""
    if _TCP_INFO is None or connection is None:
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
    except (OSError, AttributeError, ValueError):  # ValueError: uvloop, on a closed socket
        return None
    return TcpInfo(*_FIELDS.unpack_from(raw)) if len(raw) >= _FIELDS.size else None


def outstanding(connection: Any) -> int | None:
    """Bytes written to the socket that the peer has not acknowledged; None if unknown."""
    return _count(connection, _SIOCOUTQ)


def unread(connection: Any) -> int | None:
    """Bytes that have arrived and were not read from the socket; None if unknown."""
    return _count(connection, _FIONREAD)


def _count(connection: Any, request: int) -> int | None:
    try:
        import fcntl

        count = array.array("i", [0])
        fcntl.ioctl(connection.fileno(), request, count)
    except (ImportError, OSError, AttributeError, ValueError):
        return None
    return count[0]
