"""How the pipeline's threads let others run."""

from __future__ import annotations

import time
from typing import Final

_NAP: Final = 0.0002
_LONG_NAP: Final = 0.01
_LATE: Final = 0.001
"""Seconds: who gets the interpreter back later than that has waited for a thread that computes; ours do so for less."""


class Pace:
    """
    Of one thread, which naps between two pieces of its work.

    Where it gets the interpreter back late, the serving thread is in the middle
    of something: every change between the two costs both of them what they had
    in their caches. So from then on it comes back rarely, until it finds nobody.
    """

    def __init__(self) -> None:
        self._late = False

    def nap(self, *, hurry: bool) -> None:
        """``hurry`` is whether so much waits that others have to."""
        nap = _LONG_NAP if self._late and not hurry else _NAP
        due = time.monotonic() + nap
        time.sleep(nap)
        self._late = time.monotonic() - due > _LATE
