"""The fuzzer's targets hold, on what each begins with and on a little more: without atheris, so that none rots."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.fuzz.targets import TARGETS

SLOW = {"report_page"}
"""Those that take tenths of a second."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_begins_with(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
def test_a_little_more(name: str) -> None:
    @settings(max_examples=50)
    @given(some.binary(max_size=400))
    def read(data: bytes) -> None:
        TARGETS[name].run(data)

    read()
