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


def test_a_meter_provider_that_comes_alone_is_noticed(receiver: Receiver) -> None:
    """Seen to fail where only a tracer provider is asked for: its reader found nothing."""
    program = """
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    otel_llm.instrument()
    one()
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    deadline = time.monotonic() + 20
    while reader.get_metrics_data() is None and time.monotonic() < deadline:
        one()
        time.sleep(0.1)
    assert reader.get_metrics_data() is not None
    """
    _, errors = finish(process := start(program, receiver.url))
    assert process.returncode == 0, errors


REPLACED = """
import threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otel_llm import instrumentation
from otel_llm.pipeline.providers import Pipeline
otel_llm.instrument()
one("before")
trace.set_tracer_provider(TracerProvider())
"""


def test_two_that_notice_the_applications_provider_at_once(receiver: Receiver) -> None:
    """Seen to fail where the later one forgot, and closed, what the earlier one had built."""
    program = """
built, build = [], Pipeline.__init__
Pipeline.__init__ = lambda self, *args: (built.append(self), build(self, *args))[1]
follows, others = instrumentation._Active.follows, [threading.Thread(target=one, args=("other",))]
def later(self):
    if others:
        other = others.pop()
        other.start()
        other.join()
    return follows(self)
instrumentation._Active.follows = later
one("after")
print(len(built))
"""
    assert finish(start(REPLACED + program, receiver.url)) == ("1\n", "")
    assert counted(receiver) == [1, 1, 1]


def test_a_process_that_ends_while_a_replaced_pipeline_closes(receiver: Receiver) -> None:
    """Seen to fail with a thread that the interpreter does not wait for: the first request was lost."""
    program = """
shutdown = Pipeline.shutdown
def later(self):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.5)
    shutdown(self)
Pipeline.shutdown = later
one("after")
"""
    assert finish(start(REPLACED + program, receiver.url)) == ("", "")
    assert counted(receiver) == [1, 1]
    assert len(roots(receiver)) == 1


def test_a_provider_that_does_not_count_is_not_asked_at_every_request(receiver: Receiver) -> None:
    """Explicit providers come first. Seen to fail where the application's was asked for a tracer all the same."""
    program = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    class Asked(TracerProvider):
        times = 0
        def get_tracer(self, *args, **kwargs):
            Asked.times += 1
            return super().get_tracer(*args, **kwargs)
    trace.set_tracer_provider(Asked())
    otel_llm.instrument(tracer_provider=TracerProvider())
    for _ in range(20): one()
    assert Asked.times == 0, Asked.times
    """
    _, errors = finish(process := start(program, receiver.url))
    assert process.returncode == 0, errors
