"""Real vLLM through AsyncLLM: every millisecond of every request, whatever happens to it."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm
from otel_llm import instrumentation
from otel_llm.engine_state import Emission
from otel_llm.recording import Draft
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline
from tests.engines.vllm_live import POSITIONS, RARE, TARGETS, Answer, LiveEngine, prompt, sabotaged

pytestmark = pytest.mark.vllm
MS = 1_000_000
exporter = InMemorySpanExporter()
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))


@pytest.fixture(scope="module")
def live(tiny_model: Path) -> Iterator[LiveEngine]:
    otel_llm.instrument(engines=["vllm"], tracer_provider=tracer_provider)
    engine = LiveEngine(tiny_model)
    yield engine
    engine.close()
    otel_llm.uninstrument()


class Late(list[Timeline]):
    """Requests that are recorded when the test looks at them, as a pipeline of our own may do."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Emission] = []

    def record(self) -> None:
        told, self.told = self.told, []
        for said in told:
            timeline = said.timeline() if isinstance(said, Draft) else None
            if timeline is not None:
                self.append(timeline)
                instrumentation._live.get().recorder.record(timeline)

    def __iter__(self) -> Iterator[Timeline]:
        self.record()
        return super().__iter__()

    def __len__(self) -> int:
        self.record()
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        self.record()
        return super().__getitem__(index)


@pytest.fixture(params=["at once", "late"])
def seen(live: LiveEngine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Timeline]]:
    exporter.clear()
    if request.param == "late":
        timelines: list[Timeline] = (late := Late())
        monkeypatch.setattr(instrumentation._live.get(), "take", lambda said: late.told.append(said))
        yield timelines
    else:
        with recording() as timelines:
            yield timelines
    for timeline in timelines:
        assert_adds_up(timeline)
    assert not live.engine.output_processor.request_states


def only(seen: list[Timeline]) -> Timeline:
    (timeline,) = seen
    return timeline


def phases(timeline: Timeline) -> list[str]:
    return [phase.name for phase in timeline.phases()]


FULL = ["preprocess", "queue", "prefill", "decode", "postprocess"]


def test_a_hundred_at_once_with_chunked_prefill_and_preemption(live: LiveEngine, seen: list[Timeline]) -> None:
    generator = random.Random(7)

    async def ask(number: int) -> Answer:
        with tracer_provider.get_tracer("caller").start_as_current_span(f"caller-{number}"):
            return await live.ask(
                f"req-{number}",
                words=generator.choice([4, 20, 60, 90]),
                stream=number % 2 == 0,
                max_tokens=generator.choice([1, 2, 16, 40]),
            )

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(*(ask(number) for number in range(100)))

    answers = live.run(all_of_them())
    timelines = {timeline.request_id: timeline for timeline in seen}
    assert len(seen) == len(timelines) == 100
    outside: list[int] = []
    for answer in answers:
        timeline = timelines[answer.request_id]
        assert_adds_up(timeline)
        # Both ends lie inside the caller's own measurement, and the next thing to it.
        assert answer.started <= timeline.start
        assert timeline.ended <= answer.ended
        outside.append(answer.ended - answer.started - timeline.duration)
        assert set(phases(timeline)) <= set(FULL)
        assert timeline.prompt_tokens == answer.prompt_tokens
        assert timeline.cached_tokens == answer.cached_tokens
        assert timeline.output_tokens == answer.output_tokens
        assert timeline.finish_reasons == answer.finish_reasons
        assert timeline.model == "tiny"
        assert timeline.first_token is not None
        assert answer.first_item is not None
        assert timeline.first_token <= answer.first_item
        # What vLLM calls queue time lacks the wait in its input queue.
        queue = {phase.name: phase.duration for phase in timeline.phases()}["queue"]
        assert float(timeline.attributes["otel_llm.engine.queue_time"]) * 1e9 <= queue + 1
    assert statistics.median(outside) < 20 * MS  # and those that a busy machine kept waiting
    preempted = [timeline for timeline in seen if timeline.preemptions]
    assert preempted, "the KV cache is too large to preempt"
    for timeline in preempted:
        assert 0 < timeline.preemption_stall < timeline.duration

    spans = exporter.get_finished_spans()
    callers = {span.name: span for span in spans if span.name.startswith("caller-")}
    roots = [span for span in spans if span.name == "text_completion tiny"]
    assert len(roots) == 100
    for root in roots:
        assert root.attributes is not None
        assert root.parent is not None
        assert root.context is not None
        caller = callers[str(root.attributes["gen_ai.request.id"]).replace("req", "caller")]
        assert caller.context is not None
        assert root.parent.span_id == caller.context.span_id
        children = [span for span in spans if span.parent and span.parent.span_id == root.context.span_id]
        total = sum((span.end_time or 0) - (span.start_time or 0) for span in children)
        assert total == (root.end_time or 0) - (root.start_time or 0)


def test_several_samples_are_one_request(live: LiveEngine, seen: list[Timeline]) -> None:
    answer = live.run(live.ask("n", max_tokens=6, n=3, temperature=1.0, seed=1))
    request = only(seen)
    assert len(request.children) == 3
    assert request.output_tokens == answer.output_tokens == 18
    assert request.prompt_tokens == answer.prompt_tokens
    assert request.finish_reasons == ("length",) * 3
    assert {child.output_tokens for child in request.children} == {6}
    assert request.first_token == min(child.first_token for child in request.children)  # type: ignore[type-var]
    assert request.last_token == max(child.last_token for child in request.children)  # type: ignore[type-var]
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("text_completion tiny") == 4


def test_a_stop_string_counts_the_tokens_of_the_output(live: LiveEngine, seen: list[Timeline]) -> None:
    text = live.run(live.ask("first", max_tokens=30)).text
    stop = text[10:14]
    answer = live.run(live.ask("second", max_tokens=30, stop=[stop], stream=False))
    assert seen[1].output_tokens == answer.output_tokens < 30
    assert seen[1].finish_reasons == ("stop",)


def test_prefix_cache_hits_are_counted(live: LiveEngine, seen: list[Timeline]) -> None:
    live.run(live.ask("cold", words=50, max_tokens=2))
    live.run(live.ask("warm", words=50, max_tokens=2))
    assert seen[1].cached_tokens
    assert seen[1].cached_tokens >= 32


def test_one_token_has_no_decode(live: LiveEngine, seen: list[Timeline]) -> None:
    live.run(live.ask("one", max_tokens=1))
    assert phases(only(seen)) == ["preprocess", "queue", "prefill", "postprocess"]
    assert only(seen).time_per_output_token() is None


def test_streams_made_before_any_is_read_keep_apart(live: LiveEngine, seen: list[Timeline]) -> None:
    """As the completions endpoint does for a list of prompts."""
    from vllm import SamplingParams

    async def ask() -> None:
        params = SamplingParams(max_tokens=3, ignore_eos=True, n=2, temperature=1.0)
        streams = [live.engine.generate(prompt(5 + i), params, f"list-{i}") for i in range(3)]
        for stream in streams:
            async for _ in stream:
                pass

    live.run(ask())
    assert [(timeline.request_id, len(timeline.children)) for timeline in seen] == [(f"list-{i}", 2) for i in range(3)]


def items(live: LiveEngine, request_id: str, **sampling: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA, **sampling)
    return live.engine.generate(prompt(8), params, request_id)


@pytest.mark.parametrize("way", ["cancel", "aclose", "break", "engine.abort"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_request_given_up_in_decode(live: LiveEngine, seen: list[Timeline], way: str, n: int) -> None:
    received = 0

    async def ask() -> None:
        nonlocal received
        stream = items(live, "gone", n=n)
        async for item in stream:
            received += sum(len(output.token_ids) for output in item.outputs)
            if received > 4 * n and way == "aclose":
                await stream.aclose()
                return
            if received > 4 * n and way == "break":
                break
            if received > 4 * n and way == "engine.abort":
                await live.engine.abort("gone")

    async def cancelled() -> None:
        task = asyncio.create_task(ask())
        while received <= 4 * n:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    live.run(cancelled() if way == "cancel" else ask())
    live.run(asyncio.sleep(0.2))
    request = only(seen)
    assert (request.outcome, request.error_type) == ("abort", "abort" if way == "engine.abort" else "cancelled")
    assert phases(request) == ["preprocess", "queue", "prefill", "decode"]
    # Of the others vLLM hears when they have ended, which is nothing to them, however late they are recorded.
    assert request.finish_reasons == (("abort",) * n if way in ("cancel", "engine.abort") else ())
    assert request.output_tokens is not None
    assert received <= request.output_tokens <= received + 8 * n
    assert len(request.children) == (n if n > 1 else 0)
    root = next(span for span in exporter.get_finished_spans() if span.parent is None)
    assert root.attributes is not None
    assert root.attributes["otel_llm.outcome"] == "abort"


def test_a_request_given_up_before_its_first_token(live: LiveEngine, seen: list[Timeline]) -> None:
    async def ask() -> None:
        def submitted(request_id: str) -> bool:
            states = live.engine.output_processor.request_states.values()
            return any(state.external_req_id == request_id for state in states)

        background = [asyncio.create_task(live.ask(f"busy-{i}", words=60, max_tokens=30)) for i in range(20)]
        while not submitted("busy-19"):
            await asyncio.sleep(0)
        task = asyncio.create_task(live.ask("late", words=60, max_tokens=30))
        while not submitted("late"):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*background)

    live.run(ask())
    (request,) = [timeline for timeline in seen if timeline.request_id == "late"]
    assert request.outcome == "abort"
    assert phases(request)[-1] == "unsplit"  # the engine tells of its scheduling with the first token only
    assert request.phases()[-1].between == ("queue", "prefill")
    assert request.time_to_first_token() is None


def test_a_rejected_request(live: LiveEngine, seen: list[Timeline]) -> None:
    with pytest.raises(Exception, match="maximum"):
        live.run(live.ask("long", words=3000))
    request = only(seen)
    assert request.outcome == "reject"
    assert request.error_type == "VLLMValidationError"
    assert phases(request) == ["preprocess"]
    (root,) = [span for span in exporter.get_finished_spans() if span.parent is None]
    assert root.status.status_code.name == "ERROR"
    assert "maximum" not in str(root.to_json())  # messages of errors may quote prompts


def test_statistics_are_kept_on_without_their_log_lines(live: LiveEngine) -> None:
    names = [type(logger).__name__ for logger in live.engine.logger_manager.stat_loggers]
    assert live.engine.log_stats
    assert not [name for name in names if "Logging" in name or "PerEngine" in name], names


def test_the_stream_is_still_an_async_generator(live: LiveEngine, seen: list[Timeline]) -> None:
    from collections.abc import AsyncGenerator

    stream = items(live, "never read")
    assert isinstance(stream, AsyncGenerator)
    assert stream.ag_frame is not None
    live.run(stream.aclose())
    assert seen == []


ASYNC_TARGETS = [
    target
    for target in TARGETS
    if not target.endswith(("__init__", *RARE)) and "LLMEngine" not in target and "entrypoints" not in target
]


@pytest.mark.expects_faults
@pytest.mark.parametrize("target", ASYNC_TARGETS)
@pytest.mark.parametrize("position", POSITIONS)
def test_an_error_in_any_hook_leaves_the_engine_and_its_answers_alone(
    live: LiveEngine, target: str, position: str
) -> None:
    async def some() -> list[str]:
        answers = [await live.ask("greedy", max_tokens=6)]
        answers.append(await live.ask("sampled", max_tokens=6, n=2, temperature=1.0, seed=5))
        task = asyncio.create_task(live.ask("given up", max_tokens=300))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [answer.text for answer in answers]

    healthy = live.run(some())
    with sabotaged(target, position) as patcher:
        assert live.run(some()) == healthy
        assert patcher.breaker.seen > 0 or target.endswith("encode")
        assert not live.engine.errored
    assert live.run(some()) == healthy
    assert not live.engine.output_processor.request_states


def test_a_streaming_input_is_one_request(live: LiveEngine, seen: list[Timeline]) -> None:
    """The caller hands over the prompt in pieces; what the engine waits for them is told."""
    from vllm import SamplingParams
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    answered, received, waits = asyncio.Event(), [], []

    async def pieces() -> Any:
        yield StreamingInput(prompt={"type": "token", "prompt_token_ids": list(range(20, 40))})
        await answered.wait()
        begin = time.monotonic()
        await asyncio.sleep(0.4)
        waits.append(time.monotonic() - begin)
        yield StreamingInput(prompt={"type": "token", "prompt_token_ids": list(range(40, 60))})

    async def ask() -> None:
        params = SamplingParams(max_tokens=4, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        async for item in live.engine.generate(pieces(), params, "pieces"):
            received.extend((time.monotonic_ns(), token) for output in item.outputs for token in output.token_ids)
            if len(received) >= 4:
                answered.set()

    live.run(ask())
    request = only(seen)
    assert request.outcome == "ok"
    assert request.output_tokens == len(received) == 8
    assert phases(request) == FULL
    assert request.first_token is not None
    assert request.first_token <= received[0][0]
    wait = float(request.attributes["otel_llm.engine.input_wait"])
    assert waits[0] <= wait <= waits[0] * 1.25
    assert {part.name: part.duration for part in request.phases()}["decode"] / 1e9 > wait
    assert float(request.attributes["otel_llm.engine.queue_time"]) >= 0
