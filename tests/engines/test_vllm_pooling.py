"""Models that generate nothing: no decode, no first token, nothing invented."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline
from tests.engines import tiny_vllm, vllm_live
from tests.engines.test_vllm_offline import Delay, Truth, core, nothing, wrapped

pytestmark = pytest.mark.vllm
reader = InMemoryMetricReader()


def load(model: Path, **options: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=str(model),
        runner="pooling",
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        block_size=32,
        served_model_name="tiny",
        **options,
    )


@pytest.fixture(scope="module")
def embedder(tiny_model: Path) -> Iterator[Any]:
    otel_llm.instrument(engines=["vllm"], meter_provider=MeterProvider([reader]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield load(tiny_model, convert="embed")
    otel_llm.uninstrument()


@pytest.fixture(scope="module")
def classifier(embedder: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = tiny_vllm.classifier(tiny_model, tmp_path_factory.mktemp("classes") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        return load(model)


def check(timeline: Timeline, operation: str) -> None:
    assert_adds_up(timeline)
    assert (timeline.outcome, timeline.operation, timeline.output_tokens) == ("ok", operation, 0)
    assert timeline.prompt_tokens
    assert timeline.time_to_first_token() is None
    assert timeline.time_per_output_token() is None
    assert [phase.name for phase in timeline.phases()] == ["preprocess", "queue", "prefill", "postprocess"]


def test_embeddings(embedder: Any) -> None:
    began = time.monotonic_ns()
    with recording() as seen:
        outputs = embedder.embed([vllm_live.prompt(n) for n in (4, 30)], use_tqdm=False)
    ended = time.monotonic_ns()
    assert sorted(len(output.prompt_token_ids) for output in outputs) == sorted(t.prompt_tokens or 0 for t in seen)
    for timeline in seen:
        check(timeline, "embeddings")
        assert began <= timeline.start < timeline.ended <= ended


def test_a_delay_of_the_model_is_prefill(embedder: Any) -> None:
    delay, truth = Delay(0.3, range(1)), Truth()
    slow = wrapped(core(embedder).model_executor, "execute_model", delay, nothing)
    with recording() as seen, truth.watch(embedder), slow:
        embedder.embed([vllm_live.prompt(5)], use_tqdm=False)
    (timeline,) = seen
    (prefill,) = [phase.duration for phase in timeline.phases() if phase.name == "prefill"]
    assert delay.took <= prefill
    assert abs(prefill - (truth.updated[0] - truth.scheduled[0])) <= delay.took / 10


def test_scores_by_embeddings(embedder: Any) -> None:
    with recording() as seen:
        embedder.score(vllm_live.prompt(4), [vllm_live.prompt(5), vllm_live.prompt(6)], use_tqdm=False)
    assert len(seen) == 3
    for timeline in seen:
        check(timeline, "embeddings")


def test_classes(classifier: Any) -> None:
    with recording() as seen:
        classifier.classify([vllm_live.prompt(4)], use_tqdm=False)
    (timeline,) = seen
    check(timeline, "classify")


def test_no_time_to_a_first_token_is_recorded(classifier: Any) -> None:
    data = reader.get_metrics_data()
    assert data is not None
    names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.data.data_points}
    assert "gen_ai.server.request.duration" in names
    assert not names & {"gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"}
