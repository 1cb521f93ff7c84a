"""What comes with a step's outputs, in shapes that the installed vLLM does not give them."""

from __future__ import annotations

from types import SimpleNamespace as Object
from typing import Any

from otel_llm.engine_state import EngineStep, Later
from otel_llm.engines import _vllm_told
from otel_llm.engines._vllm_steps import STEPS
from otel_llm.engines._vllm_waits import KEY
from otel_llm.faults import Breaker
from otel_llm.patching import Probe


class Chunk(list[Any]):
    """As releases up to 0.13 cut a step of many outputs: an array of numpy's, which is neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class Sample:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def told(self, *about: Any) -> None:
        self.heard.append(about)


def output(name: str, events: Any = None, headers: Any = None) -> Any:
    return Object(request_id=name, events=events, trace_headers=headers)


def processed(*chunks: Chunk) -> tuple[dict[str, list[tuple[Any, ...]]], list[EngineStep]]:
    """What the samples of two requests hear, and the steps that are told."""
    emitted: list[Any] = []
    probe = Probe(emitted.append, lambda *_: None, lambda: True, Breaker("vllm"))
    samples = {"a": Sample(), "b": Sample()}
    states = {name: Object(**{KEY: sample}) for name, sample in samples.items()}
    processor = Object(request_states={**states, "not ours": Object()}, **{KEY: "model"})

    def original(self: Any, engine_core_outputs: Chunk) -> int:
        return len(engine_core_outputs)

    replacement = _vllm_told.hooks(probe)[0].replacement
    assert replacement is not None
    process = replacement(original)
    for chunk in chunks:
        assert process(processor, chunk) == len(chunk)
    told = [said for later in emitted if isinstance(later, Later) for said in later.told()]
    return {name: sample.heard for name, sample in samples.items()}, [s for s in told if isinstance(s, EngineStep)]


def test_a_step_in_chunks_is_told_once_with_the_first() -> None:
    heard, steps = processed(
        Chunk([output("a", headers={STEPS: "2;3 40"}), output("b")]), Chunk([output("c")]), Chunk()
    )
    assert steps == [EngineStep("vllm", "model", 2, 3, 40)]
    assert heard == {"a": [], "b": []}, "no event, nothing to say"


def test_events_reach_their_requests_alone_with_the_same_moment_and_what_came_along() -> None:
    waits = {"otel-llm-grammar-ready": "1.5"}
    heard, steps = processed(
        Chunk(
            [output("gone", ["QUEUED"]), output("not ours", ["QUEUED"]), output("a", ["QUEUED"], waits), output("b")]
        ),
        Chunk([output("a"), output("b", ["PREEMPTED"])]),
    )
    ((_, *first),), ((_, *second),) = heard["a"], heard["b"]
    assert (first, second) == ([["QUEUED"], waits], [["PREEMPTED"], None])
    assert steps == []
