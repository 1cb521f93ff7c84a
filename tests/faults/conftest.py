from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_llm.report.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as live:
        yield live
