"""Every file in otel_llm/engines, against the engine that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import otel_llm
from otel_llm import engines
from otel_llm.faults import Breaker
from otel_llm.patching import Engine, Hook, Patcher, Probe, resolve
from otel_llm.testing import assert_undo_restores, missing_targets
from otel_llm.timeline import Timeline


def drop(_timeline: Timeline) -> None:
    """Keeps nothing."""


def no_context(_headers: object = None) -> None:
    """Captures nothing."""


def ready() -> None:
    """Does nothing."""


@pytest.fixture(params=engines.names())
def engine(request: pytest.FixtureRequest) -> Engine:
    row = engines.load(request.param)
    if importlib.util.find_spec(row.package) is None:
        if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
            pytest.fail(f"{row.package} is not installed")
        pytest.skip(f"{row.package} is not installed; `make test` installs it")
    return row


def hooks_of(engine: Engine) -> tuple[Hook, ...]:
    return engine.hooks(Probe(drop, no_context, ready, Breaker(engine.name)))


def test_every_required_target_resolves(engine: Engine) -> None:
    assert missing_targets(engine) == []


def test_undo_restores_the_identical_objects(engine: Engine) -> None:
    assert_undo_restores(engine)


def test_applying_twice_and_undoing_once_leaves_nothing(engine: Engine) -> None:
    places = [place for hook in hooks_of(engine) if (place := resolve(hook)) is not None]
    first, second = (Patcher(engine, drop, no_context, ready) for _ in range(2))
    first.apply()
    second.apply()
    second.undo()
    first.undo()
    for parent, attribute, original in places:
        assert vars(parent).get(attribute, original) is original


def test_a_renamed_target_fails_this_contract_and_leaves_the_engine_untouched(engine: Engine) -> None:
    """A copy of the engine file whose upstream has renamed one function, each in turn."""
    for position, victim in enumerate(hooks_of(engine)):
        if not victim.required:
            continue

        def renamed(probe: Probe, position: int = position) -> tuple[Hook, ...]:
            rows = list(engine.hooks(probe))
            rows[position] = replace(rows[position], targets=tuple(f"{t}_renamed" for t in rows[position].targets))
            return tuple(rows)

        copy = replace(engine, hooks=renamed)
        places = [place for hook in hooks_of(engine) if (place := resolve(hook)) is not None]
        before = [vars(parent).get(attribute) for parent, attribute, _ in places]
        assert missing_targets(copy) == [f"{victim.targets[0]}_renamed"]
        patcher = Patcher(copy, drop, no_context, ready)
        patcher.apply()
        assert patcher.state == "failed"
        assert f"{victim.targets[0]}_renamed" in patcher.reason
        assert [vars(parent).get(attribute) for parent, attribute, _ in places] == before


def test_the_file_imports_without_the_engine(engine: Engine) -> None:
    blocked = ("vllm", "transformers", "torch")
    program = f"""
import sys
for name in {blocked!r}: sys.modules[name] = None
import otel_llm
from otel_llm import engines
print([engines.load(name).name for name in engines.names()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert engine.name in done.stdout, done.stderr


def test_the_folder_is_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new engine is one file: dropped into the folder it is found, and nothing else is touched."""
    (tmp_path / "brandnew.py").write_text(
        "from otel_llm.patching import Engine\n"
        "ENGINE = Engine('brandnew', 'brandnew', ('brandnew',), lambda probe: ())\n"
    )
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "brandnew" in engines.names()
    assert engines.load("brandnew").name == "brandnew"
    sys.modules.pop("otel_llm.engines.brandnew", None)


def test_instrument_twice_is_once_and_uninstrument_restores(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    places = [place for hook in hooks_of(engine) if (place := resolve(hook)) is not None]
    name = next(name for name in engines.names() if engines.load(name) is engine)
    otel_llm.instrument(engines=[name])
    once = [vars(parent).get(attribute) for parent, attribute, _ in places]
    otel_llm.instrument(engines=[name])
    assert [vars(parent).get(attribute) for parent, attribute, _ in places] == once
    assert "already instrumented" in caplog.text
    assert otel_llm.status().engines[engine.name].state == "applied"
    otel_llm.uninstrument()
    assert all(vars(parent).get(attribute, original) is original for parent, attribute, original in places)
    assert otel_llm.status().instrumented is False
