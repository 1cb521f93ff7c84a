"""``generate`` in another thread than its caller's: the parent span is kept, and so is the wait for the thread."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny

MILLISECOND = 1_000_000


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    from otel_llm.demo import tiny_model

    return AutoTokenizer.from_pretrained(tiny_model.build(tmp_path_factory.mktemp("tokenizer") / "tiny"))


class Traces:
    """The application's own provider."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.tracer = self.provider.get_tracer("service")

    def parents(self) -> list[str | None]:
        """For each request, in the order of their ends, the name of the span above it."""
        spans = self.spans.get_finished_spans()
        names = {span.context.span_id: span.name for span in spans}
        requests = [span for span in spans if span.name.startswith("text_completion")]
        return [names[span.parent.span_id] if span.parent else None for span in requests]


@pytest.fixture
def traces(instrumented: None) -> Traces:
    made = Traces()
    otel_llm.instrument(
        engines=["transformers"], tracer_provider=made.provider, meter_provider=MeterProvider(shutdown_on_exit=False)
    )
    return made


def short(model: tiny.SlowQwen2, **arguments: Any) -> Any:
    return model.generate(tiny.prompt(), max_new_tokens=2, **arguments)


def streamed(model: tiny.SlowQwen2, tokenizer: Any) -> str:
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = threading.Thread(target=short, args=(model,), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text


def test_a_streamer_carries_the_span_into_its_thread(model: tiny.SlowQwen2, tokenizer: Any, traces: Traces) -> None:
    for name in ("first", "second"):
        with traces.tracer.start_as_current_span(name):
            assert streamed(model, tokenizer)
    assert streamed(model, tokenizer)
    assert traces.parents() == ["first", "second", None]


def test_a_streamer_does_not_outlive_its_span(model: tiny.SlowQwen2, tokenizer: Any, traces: Traces) -> None:
    from transformers import TextStreamer

    with traces.tracer.start_as_current_span("over"):
        streamer = TextStreamer(tokenizer)
    short(model, streamer=streamer)
    with traces.tracer.start_as_current_span("own"):
        short(model, streamer=streamer)
    assert traces.parents() == [None, "own"]


def test_a_pool_carries_the_span_of_each_submission(model: tiny.SlowQwen2, traces: Traces) -> None:
    with ThreadPoolExecutor(1) as pool:
        for name in ("first", "second"):
            with traces.tracer.start_as_current_span(name):
                work = pool.submit(model.generate, tiny.prompt(), max_new_tokens=2)
            assert work.result().shape[1] == 8
        assert pool.submit(short, model).result().shape[1] == 8
        assert pool.submit(lambda *, fn: fn, fn=3).result() == 3, "a keyword of this name belongs to the function"
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
    assert traces.parents() == ["first", "second", None]


def test_a_span_of_the_worker_itself_wins(model: tiny.SlowQwen2, traces: Traces) -> None:
    def work() -> None:
        with traces.tracer.start_as_current_span("inner"):
            short(model)

    with ThreadPoolExecutor(1) as pool, traces.tracer.start_as_current_span("outer"):
        pool.submit(work).result()
    assert traces.parents() == ["inner"]


async def test_asyncio(model: tiny.SlowQwen2, traces: Traces) -> None:
    with traces.tracer.start_as_current_span("to_thread"):
        await asyncio.to_thread(short, model)
    with traces.tracer.start_as_current_span("run_in_executor"):
        await asyncio.get_running_loop().run_in_executor(None, short, model)
    assert traces.parents() == ["to_thread", "run_in_executor"]


def queues(timelines: list[Timeline]) -> list[int]:
    return [sum(part.duration for part in timeline.phases() if part.name == "queue") for timeline in timelines]


async def test_requests_wait_for_the_inference_thread_of_serve(model: tiny.SlowQwen2, traces: Traces) -> None:
    serving = pytest.importorskip("transformers.cli.serving.utils", reason="only from 5.5 on")
    thread = serving.InferenceThread()
    await thread.async_submit(short, model)
    model.delays = [0.05]
    submitted = []

    async def ask(number: int) -> None:
        with traces.tracer.start_as_current_span(f"request {number}"):
            before = time.monotonic_ns()
            answer = thread.async_submit(model.generate, tiny.prompt(), max_new_tokens=3)
            submitted.append((before, time.monotonic_ns()))
            await answer

    with recording() as seen:
        model.forwards.clear()
        await asyncio.gather(*(ask(number) for number in range(4)))
        model.delays = []
    for number, timeline in enumerate(seen):
        assert_adds_up(timeline)
        before, after = submitted[number]
        assert timeline.submitted is not None
        assert before <= timeline.submitted <= after
        # It waits until the request before it is over, and no longer when its own first step begins.
        over = model.forwards[3 * number - 1] if number else before
        assert timeline.scheduled is not None
        assert over <= timeline.scheduled <= model.forwards[3 * number] - 50 * MILLISECOND
    assert queues(seen)[3] > 400 * MILLISECOND
    assert traces.parents()[1:] == [f"request {number}" for number in range(4)]


def test_the_synchronous_submission_of_serve(model: tiny.SlowQwen2, traces: Traces) -> None:
    serving = pytest.importorskip("transformers.cli.serving.utils", reason="only from 5.5 on")
    thread = serving.InferenceThread()
    model.forwards.clear()
    with recording() as seen:
        sleeping = thread.submit(time.sleep, 0.2)
        before = time.monotonic_ns()
        assert thread.submit(short, model).result().shape[1] == 8
        assert sleeping.done()
        with pytest.raises(ValueError, match="beam"):
            thread.submit(short, model, num_beams=2, streamer=tiny.Clock()).result()
    assert 150 * MILLISECOND < queues(seen)[0] < model.forwards[0] - before
    assert seen[1].outcome == "reject"


def test_a_client_of_serve_that_goes_away_is_an_abort(model: tiny.SlowQwen2, traces: Traces) -> None:
    serving = pytest.importorskip("transformers.cli.serving.utils", reason="only from 5.5 on")
    with recording() as seen, pytest.raises(serving._GenerationCancelled):
        short(model, streamer=tiny.Clock(1, serving._GenerationCancelled()))
    assert (seen[0].outcome, seen[0].error_type) == ("abort", "cancelled")
