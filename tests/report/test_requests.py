from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.report import otlp
from otel_llm.report.requests import Request, requests
from otel_llm.telemetry.spans import SpanWriter, TracerSpans
from otel_llm.timeline import Timeline, merged

WALL = 1_700_000_000_000_000_000


def over_the_wire(timelines: Sequence[Timeline]) -> list[otlp.Span]:
    """What a collector receives of these requests."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    writer = SpanWriter(TracerSpans(provider.get_tracer("test")), public_endpoint=False)
    for timeline in timelines:
        writer.write(timeline, timeline.phases(), Context())
    return list(otlp.spans(encode_spans(exporter.get_finished_spans()).SerializeToString()))


def timeline(*stamps: int, **fields: object) -> Timeline:
    names = ("received", "submitted", "scheduled", "first_token", "last_token", "ended")
    known = dict(zip(names, stamps, strict=True)) | fields
    return Timeline(engine="vllm", operation="chat", wall_offset=WALL, **known)  # type: ignore[arg-type] - by name


def check(found: Request, made: Timeline) -> None:
    assert [(part.phase, part.start, part.end) for part in found.parts] == [
        (phase.name, made.wall(phase.start), made.wall(phase.end)) for phase in made.phases()
    ]
    assert (found.start, found.end, found.duration) == (made.wall(made.start), made.wall(made.ended), made.duration)
    assert found.residual == 0


@given(st.lists(st.integers(0, 10**12), min_size=6, max_size=6).map(sorted))
def test_phases_come_back_to_the_nanosecond(stamps: list[int]) -> None:
    made = timeline(*stamps)
    (found,) = requests(over_the_wire([made]))
    check(found, made)


def test_figures_of_a_request() -> None:
    made = timeline(0, 10, 40, 100, 180, 200, model="m", prompt_tokens=5, cached_tokens=4, output_tokens=9)
    (found,) = requests(over_the_wire([made]))
    assert found.phase("queue") == 30
    assert found.phase("accept") == 0
    assert found.time_to_first_token is not None
    assert round(found.time_to_first_token, 6) == 100
    assert found.time_per_output_token == 10
    assert (found.model, found.prompt_tokens, found.cached_tokens, found.output_tokens) == ("m", 5, 4, 9)
    assert found.outcome == "ok"


def test_several_samples_are_one_request() -> None:
    samples = [timeline(0, 10, 40, 100, 180, 200), timeline(0, 10, 50, 120, 150, 200)]
    made = Timeline(engine="vllm", operation="chat", wall_offset=WALL, received=0, ended=200, **merged(samples))
    (found,) = requests(over_the_wire([made]))
    check(found, made)
    assert found.phase("decode") == 80


def test_requests_are_told_apart_and_put_in_order() -> None:
    later, earlier = timeline(500, 510, 540, 600, 680, 700), timeline(0, 10, 40, 100, 180, 200)
    found = requests(over_the_wire([later, earlier]))
    assert len(found) == 2
    check(found[0], earlier)
    check(found[1], later)


def test_a_phase_that_did_not_arrive_shows_as_residual() -> None:
    spans = over_the_wire([timeline(0, 10, 40, 100, 180, 200)])
    (found,) = requests([span for span in spans if span.name != "queue"])
    assert found.residual == -30


def test_time_per_output_token_needs_a_full_answer_of_two_tokens() -> None:
    made = (
        timeline(0, 10, 40, 100, 180, 200, output_tokens=1),
        timeline(0, 10, 40, 100, 180, 200, output_tokens=9, outcome="abort"),
    )
    assert [found.time_per_output_token for found in requests(over_the_wire(made))] == [None, None]
