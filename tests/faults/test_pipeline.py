"""The pipeline in real processes, with nothing wrong: which providers, which exporters, what arrives."""

from __future__ import annotations

from otel_llm.report.receiver import Receiver
from tests.faults.programs import counted, finish, nobody, roots, start


def test_requests_arrive_with_spans_and_metrics(receiver: Receiver) -> None:
    process = start("otel_llm.instrument(service_name='svc')\nfor _ in range(3): one()", receiver.url)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert errors == ""
    assert len(roots(receiver)) == 3
    assert counted(receiver) == [3]


def test_no_exporter_means_no_pipeline() -> None:
    program = "otel_llm.instrument()\none()\nprint('grpc' in sys.modules, otel_llm.status().exporters)"
    process = start(program, nobody(), OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    output, errors = finish(process)
    assert (output.strip(), errors) == ("False {'traces': (), 'metrics': ()}", "")


def test_the_console_exporter(receiver: Receiver) -> None:
    process = start(
        "otel_llm.instrument()\none()", receiver.url, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console"
    )
    output, _ = finish(process)
    assert '"name": "text_completion m"' in output
    assert "gen_ai.server.request.duration" in output
    assert roots(receiver) == []


def test_a_disabled_sdk_is_disabled(receiver: Receiver) -> None:
    process = start("otel_llm.instrument()\none()", receiver.url, OTEL_SDK_DISABLED="true")
    assert finish(process) == ("", "")
    assert receiver.spans() == []


def test_the_applications_providers_are_used_even_if_they_come_later(receiver: Receiver) -> None:
    program = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    otel_llm.instrument()
    one("before")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with provider.get_tracer("app").start_as_current_span("parent") as parent:
        one("after")
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert found["text_completion after"].parent.span_id == parent.get_span_context().span_id
    assert "text_completion before" not in found
    """
    process = start(program, receiver.url)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    names = [span.name for span in roots(receiver)]
    assert names == ["text_completion before"]
    assert sum(counted(receiver)) == 2  # metrics stay with the pipeline that serves them
