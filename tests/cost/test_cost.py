"""
The cost gate: thread CPU against a calibration loop timed in the same rounds, failing at twice the budget.

Never wall time, and the least of many rounds: other work on the machine makes
both slower. What the budgets are and how they are kept is in docs/cost.md.
"""

from __future__ import annotations

import os

import pytest

from benchmarks import request_cost
from benchmarks.paired import sink


@pytest.fixture(scope="module")
def costs() -> dict[str, float]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    try:
        with sink() as url:
            return request_cost.measure(url, rounds=60)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("name", request_cost.BUDGETS)
def test_no_more_than_twice_the_budget(name: str, costs: dict[str, float]) -> None:
    slow = max(costs["calibration"] / request_cost.CALIBRATION_US, 1.0)
    assert costs[name] <= 2 * request_cost.BUDGETS[name] * slow
