"""
What the stopping criteria say after each step, for the few calls that need it. Not an engine: ``_`` files are none.

It is heard in that call alone: nothing is in the way of the others. Upstream:
transformers/generation/stopping_criteria.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

Swallow = Callable[[str, Exception], None]


def heard(criteria: Any, hear: Callable[[Any], None], swallow: Swallow) -> Any:
    """The same criteria, in a list that tells what they say of each step."""
    return _telling(cast("Hashable", type(criteria)))(criteria, hear, swallow)


@functools.cache
def _telling(base: Any) -> Callable[..., Any]:
    """The class of such lists, which the library's own is a base of."""

    class Telling(base):  # type: ignore[misc] # known at run time only
        def __init__(self, criteria: Any, hear: Callable[[Any], None], swallow: Swallow) -> None:
            super().__init__(criteria)
            self._hear, self._swallow = hear, swallow

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            done = super().__call__(*args, **kwargs)
            try:
                self._hear(done)
            except Exception as error:
                self._swallow("StoppingCriteriaList", error)
            return done

    return Telling
