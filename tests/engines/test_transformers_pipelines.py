"""Pipelines: what they do before and after ``generate`` is part of the request; results and laziness stay."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.testing import assert_adds_up
from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny

MILLISECOND = 1_000_000
PROMPTS = ["the queue", "a longer prompt than the first", "decode"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import pipeline

    from otel_llm.demo import tiny_model

    folder: Path = tiny_model.build(tmp_path_factory.mktemp("pipeline") / "tiny")
    made = pipeline("text-generation", model=str(folder), device="cpu")
    made.tokenizer.padding_side = "left"
    return made


@pytest.fixture
def slow(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known delays around generate."""
    cls = type(pipe)
    preprocess, postprocess = cls.preprocess, cls.postprocess

    def slow_preprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.06)
        return preprocess(self, *args, **kwargs)

    def slow_postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.04)
        return postprocess(self, *args, **kwargs)

    monkeypatch.setattr(cls, "preprocess", slow_preprocess)
    monkeypatch.setattr(cls, "postprocess", slow_postprocess)


@pytest.fixture
def seen() -> Iterator[list[Timeline]]:
    with tiny.watched() as timelines:
        yield timelines


GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def parts(timeline: Timeline) -> dict[str, int]:
    assert_adds_up(timeline)
    return {phase.name: phase.duration for phase in timeline.phases()}


@pytest.mark.usefixtures("slow")
def test_pre_and_postprocessing_are_phases(pipe: Any, seen: list[Timeline]) -> None:
    before = time.monotonic_ns()
    pipe(PROMPTS[1], **GREEDY)
    wall = time.monotonic_ns() - before
    (timeline,) = seen
    durations = parts(timeline)
    assert list(durations) == ["preprocess", "prefill", "decode", "postprocess"]
    assert durations["preprocess"] >= 60 * MILLISECOND
    assert durations["postprocess"] >= 40 * MILLISECOND
    assert durations["prefill"] + durations["decode"] <= wall - 100 * MILLISECOND
    assert timeline.duration <= wall
    assert timeline.output_tokens == 4
    assert timeline.prompt_tokens == len(pipe.tokenizer(PROMPTS[1]).input_ids)


def test_results_are_those_of_an_uninstrumented_pipeline(pipe: Any) -> None:
    def everything() -> list[Any]:
        return [
            pipe(PROMPTS[0], **GREEDY),
            pipe(PROMPTS, **GREEDY),
            pipe(PROMPTS, batch_size=2, **GREEDY),
            list(pipe((prompt for prompt in PROMPTS), **GREEDY)),
            pipe([{"role": "user", "content": "wait"}], **GREEDY),
        ]

    plain = everything()
    with tiny.watched() as seen:
        assert everything() == plain
    assert [len(t.children) for t in seen] == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0], "a batch is one call of generate"


@pytest.mark.usefixtures("slow")
def test_each_item_of_a_list_is_a_request(pipe: Any, seen: list[Timeline]) -> None:
    pipe(PROMPTS, **GREEDY)
    assert len(seen) == 3
    for timeline, text in zip(seen, PROMPTS, strict=True):
        assert list(parts(timeline)) == ["preprocess", "prefill", "decode", "postprocess"]
        assert timeline.prompt_tokens == len(pipe.tokenizer(text).input_ids)
    assert all(left.ended <= right.start for left, right in itertools.pairwise(seen))


@pytest.mark.usefixtures("slow")
def test_a_generator_stays_lazy(pipe: Any, seen: list[Timeline]) -> None:
    asked = []

    def prompts() -> Iterator[str]:
        for text in PROMPTS:
            time.sleep(0.5)  # the caller's own time
            asked.append(text)
            yield text

    results = pipe(prompts(), **GREEDY)
    if isinstance(results, list):
        pytest.skip("this version of transformers is not lazy: 5.5 to 5.12 compute everything at once")
    looked_at = len(asked)  # versions differ: some look at the first prompt to tell chats from texts
    assert not seen
    next(iter(results))
    assert len(seen) == 1
    assert len(asked) <= looked_at + 1 < len(PROMPTS)
    assert 60 * MILLISECOND <= parts(seen[0])["preprocess"] < 500 * MILLISECOND


@pytest.mark.usefixtures("slow")
def test_a_batch_ends_when_its_first_result_is_delivered(pipe: Any, seen: list[Timeline]) -> None:
    results = iter(pipe((text for text in PROMPTS[:2]), batch_size=2, **GREEDY))
    next(results)
    delivered = time.monotonic_ns()
    (timeline,) = seen
    next(results)
    assert len(seen) == 1
    assert timeline.ended <= delivered
    durations = parts(timeline)
    assert durations["preprocess"] >= 120 * MILLISECOND, "both prompts were prepared for this call"
    assert durations["postprocess"] >= 40 * MILLISECOND
    assert [child.prompt_tokens for child in timeline.children] == [
        len(pipe.tokenizer(text).input_ids) for text in PROMPTS[:2]
    ]


def test_an_error_after_generate(pipe: Any, seen: list[Timeline], monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("in postprocess")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(pipe, "postprocess", fail)
    with pytest.raises(RuntimeError) as raised:
        pipe(PROMPTS[0], **GREEDY)
    assert raised.value is error
    (timeline,) = seen
    assert (timeline.outcome, timeline.error_type, timeline.output_tokens) == ("error", "RuntimeError", 4)
    assert list(parts(timeline))[-1] == "postprocess"


def test_an_error_in_generate(pipe: Any, seen: list[Timeline]) -> None:
    with pytest.raises(ValueError, match="beam"):
        pipe(PROMPTS[0], num_beams=2, streamer=tiny.Clock(), **GREEDY)
    pipe(PROMPTS[0], **GREEDY)
    refused, after = seen
    assert (refused.outcome, after.outcome) == ("reject", "ok")
    assert next(iter(parts(refused))) == "preprocess"
