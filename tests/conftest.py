from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import otel_llm
from otel_llm import faults
from otel_llm.testing import swallowed

# How long an example takes says something about the machine, not about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


@pytest.fixture(autouse=True)
def no_hidden_error(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, Exception]]]:
    """Every error that production would swallow fails the test, unless it expects them."""
    faults.forget()
    with swallowed() as errors:
        yield errors
    if request.node.get_closest_marker("expects_faults") is None and errors:
        raise AssertionError(f"swallowed in {errors[0][0]}") from errors[0][1]


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Nothing is left behind."""
    yield
    otel_llm.uninstrument()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expects_faults: errors of our own are injected here")
    config.addinivalue_line("markers", "soak: thousands of requests, by `make test-soak` only")
    config.addinivalue_line("markers", "slow: by `make test-faults` only")
    for engine in ("vllm", "transformers"):
        config.addinivalue_line("markers", f"{engine}: needs the real {engine}")
    # No test may try to reach a collector that it did not start itself.
    os.environ.setdefault("OTEL_TRACES_EXPORTER", "none")
    os.environ.setdefault("OTEL_METRICS_EXPORTER", "none")
