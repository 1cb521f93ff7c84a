from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ENGINES = ("vllm", "transformers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A missing engine is a visible skip, and with OTEL_LLM_REQUIRE_ENGINES=1 a failure."""
    if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
        return
    for item in items:
        for engine in ENGINES:
            if item.get_closest_marker(engine) and importlib.util.find_spec(engine) is None:
                item.add_marker(pytest.mark.skip(reason=f"{engine} is not installed; `make test` installs it"))


@pytest.fixture(scope="module", autouse=True)
def searchable() -> None:
    """
    An engine in this process looks through all modules for its kernels, and fails over one of llvmlite's.

    Drafting of n-grams imports that by way of numba, which does not need it to be listed.
    """
    sys.modules.pop("llvmlite.binding.ffi", None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from otel_llm.demo import tiny_model

    return tiny_model.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def no_engine_of_before() -> None:
    """An engine in this process that is collected later would take the process groups of its successor with it."""
    gc.collect()
