"""What a test does about a program that is not on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import programs
import pytest

T = TypeVar("T")


def obtained(find: Callable[[], T], *, optional: bool = False) -> T:
    """Skip the test if a program is missing; fail it where everything is required and it is not optional."""
    try:
        return find()
    except programs.MissingProgramError as missing:
        if not optional and os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))  # which says what to run
