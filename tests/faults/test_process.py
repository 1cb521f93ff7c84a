"""
The pipeline in real processes: collectors that are absent or silent, fork, signals.

Each program runs as a user's would; the receiver is a real OTLP endpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from otel_llm.report.receiver import Receiver

REQUEST = """
def one(model="m"):
    with otel_llm.request(model=model) as r:
        r.tokens(1)
        r.tokens(1)
"""
EXIT_LIMIT = 3.0
"""Seconds that telemetry may add to an exit, by docs/architecture.md."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as live:
        yield live


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def environment(endpoint: str, protocol: str = "http/protobuf", **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    return {**clean, **otlp, "PYTHONUNBUFFERED": "1", **more}


def start(program: str, endpoint: str, protocol: str = "http/protobuf", **more: str) -> subprocess.Popen[str]:
    source = "import otel_llm, os, sys, time\n" + REQUEST + textwrap.dedent(program)
    command = [sys.executable, "-c", source]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(endpoint, protocol, **more), stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[str, str]:
    output, errors = process.communicate(timeout=timeout)
    return output, errors


def roots(receiver: Receiver) -> list[object]:
    return [span for span in receiver.spans() if "otel_llm.outcome" in span.attributes]


def counted(receiver: Receiver) -> list[int]:
    """Requests by the metrics, one number per process."""
    return sorted(point.count for point in receiver.points("gen_ai.server.request.duration"))


def test_requests_arrive_with_spans_and_metrics(receiver: Receiver) -> None:
    process = start("otel_llm.instrument(service_name='svc')\nfor _ in range(3): one()", receiver.url)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert errors == ""
    assert len(roots(receiver)) == 3
    assert counted(receiver) == [3]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("fault", ["absent", "silent"])
def test_without_a_collector_one_warning_and_a_quick_exit(protocol: str, fault: str, black_hole: str) -> None:
    program = """
    otel_llm.instrument()
    for _ in range(600): one()
    print(time.time())
    """
    process = start(program, nobody() if fault == "absent" else black_hole, protocol)
    output, errors = finish(process)
    took = time.time() - float(output)
    assert process.returncode == 0, errors
    assert took < EXIT_LIMIT + 1.5, took  # the interpreter itself and the imports of the exporters come on top
    lines = [line for line in errors.splitlines() if line.strip()]
    assert all(line.startswith("otel_llm:") for line in lines), errors
    assert len(lines) == 1, errors


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
    names = [span.name for span in roots(receiver)]  # type: ignore[attr-defined]
    assert names == ["text_completion before"]
    assert sum(counted(receiver)) == 2  # metrics stay with the pipeline that serves them


def test_a_collector_that_comes_back_is_noticed() -> None:
    endpoint = nobody()
    program = """
    otel_llm.instrument()
    one()
    print("lost", flush=True)
    sys.stdin.readline()
    one()
    """
    source = "import otel_llm, os, sys, time\n" + REQUEST + textwrap.dedent(program)
    quick = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_METRICS_EXPORTER": "none"}
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        env=environment(endpoint, **quick),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.readline()
    assert "are being lost" in process.stderr.readline()
    with Receiver(int(endpoint.rpartition(":")[2])) as receiver:
        process.stdin.write("\n")
        process.stdin.close()
        errors = process.stderr.read()
        process.wait(30)
        assert "are delivered again" in errors
        assert len(roots(receiver)) == 1


def test_forked_children_count_their_own_requests(receiver: Receiver) -> None:
    program = """
    import multiprocessing
    otel_llm.instrument()
    def child(): one(); one()
    if __name__ == "__main__":
        one()
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=child) for _ in range(3)]
        for process in children: process.start()
        for process in children: process.join(30)
        assert [process.exitcode for process in children] == [0, 0, 0]
    """
    process = start(program, receiver.url)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert counted(receiver) == [1, 2, 2, 2]
    assert len(roots(receiver)) == 7
    assert len({point.process for point in receiver.points("gen_ai.server.request.duration")}) == 4


def test_forks_while_recording_never_hang(receiver: Receiver) -> None:
    program = """
    import threading
    sys.setswitchinterval(1e-5)
    otel_llm.instrument()
    one()
    stop = False
    def load():
        while not stop: one()
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads: thread.start()
    hung = 0
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            one()
            os._exit(0)
        deadline = time.monotonic() + 60  # far more than slow: one that hangs, hangs for ever
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                hung += 1
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                break
            time.sleep(0.005)
    stop = True
    for thread in threads: thread.join()
    print(hung)
    """
    output, _ = finish(start(program, receiver.url), timeout=300)
    assert output.strip() == "0"


SERVER = """
import uvicorn
async def app(scope, receive, send):
    if scope["type"] != "http": return
    one()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
ENDINGS = {
    "plain": "otel_llm.instrument()\none()\nprint('ready')\ntime.sleep(60)",
    "uvicorn.run": SERVER + "otel_llm.instrument()\none()\nprint('ready')\nuvicorn.run(app, port={port})",
    "instrumented by the running server": 'import uvicorn\nuvicorn.run("service:app", port={port})',
}
SERVICE = "import otel_llm\n" + REQUEST + SERVER + "\notel_llm.instrument()\none()\nprint('ready')"


@pytest.mark.parametrize("ending", ENDINGS)
def test_sigterm_sends_what_is_queued(ending: str, receiver: Receiver, tmp_path: Path) -> None:
    port = nobody().rpartition(":")[2]
    (tmp_path / "service.py").write_text(SERVICE)
    process = start(ENDINGS[ending].replace("{port}", port), receiver.url, PYTHONPATH=str(tmp_path))
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    if ending != "plain":
        wait_for(int(port))
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == -signal.SIGTERM
    assert len(roots(receiver)) == 1
    assert counted(receiver) == [1]


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(port)


def test_a_signal_handler_of_the_service_is_kept(receiver: Receiver) -> None:
    program = """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    otel_llm.instrument()
    one()
    print("ready")
    time.sleep(60)
    """
    process = start(program, receiver.url)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 7
    assert len(roots(receiver)) == 1


def test_ids_do_not_repeat_where_random_is_seeded(receiver: Receiver) -> None:
    program = "import random\nrandom.seed(0)\notel_llm.instrument()\none()\nprint(random.random())"
    with futures.ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda _: finish(start(program, receiver.url))[0], range(2)))
    assert outputs[0] == outputs[1] == "0.8444218515250481\n"  # the application's own sequence is not advanced
    assert len({span.trace_id for span in roots(receiver)}) == 2  # type: ignore[attr-defined]


def test_one_poisoned_span_does_not_take_its_batch_along(receiver: Receiver) -> None:
    program = """
    otel_llm.instrument()
    class Bad(str):
        def __str__(self): raise RuntimeError
    for model in ("good", "chat \\ud800", Bad("x"), "a\\n\\x1b[31m", "p" * 10**6, 10**400, [1], float("nan")):
        one(model)
    """
    process = start(program, receiver.url)
    _, errors = finish(process)
    assert process.returncode == 0
    assert len(roots(receiver)) == 8, errors
    names = {span.name for span in roots(receiver)}  # type: ignore[attr-defined]
    assert all(name.isprintable() and len(name) < 300 for name in names)
