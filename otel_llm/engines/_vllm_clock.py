"""
Where the engine core's clock is not ours. Not an engine: files that start with ``_`` are none.

All processes of a Linux host share the monotonic clock. An engine core on
another host, or in another time namespace, has its own: its stamps contradict
the moments at which they were sent for and received. Their differences still
hold, so they are moved onto our clock as a whole.
"""

from __future__ import annotations

from typing import NamedTuple


class Stamps(NamedTuple):
    """What the engine core stamped, nanoseconds of its clock; None is not known."""

    queued: int | None
    scheduled: int | None
    first_token: int | None
    last_token: int | None


def anchored(stamps: Stamps, submitted: int, first_received: int, ended: int) -> Stamps | None:
    """
    The stamps on our clock, if it is not theirs already; None if they can stay, or cannot be placed.

    ``submitted``, ``first_received`` (of the first output) and ``ended`` are
    of our clock. No output arrives before it is made: the clock's offset is
    taken as large as that allows. So the way back counts as none, and what the
    two ways took together is part of the queue.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    latest = [(stamps.first_token, first_received), (stamps.last_token, ended)]
    limits = [received - stamp for stamp, received in latest if stamp is not None]
    if not limits or (min(known) >= submitted and min(limits) >= 0):
        return None
    offset = min(limits)
    if min(known) + offset < submitted or sorted(known) != known:
        return None  # not even the differences hold
    return Stamps(*(None if stamp is None else stamp + offset for stamp in stamps))
