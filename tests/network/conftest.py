from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Recorded
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_llm
from otel_llm.clients import _attempt
from otel_llm.report.receiver import Receiver


@pytest.fixture
def recorded(no_hidden_error: object) -> Iterator[Recorded]:
    """Instrumented with providers of the test's own; ends before errors are looked for."""
    found = Recorded()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(found.spans))
    otel_llm.instrument(tracer_provider=tracer_provider, meter_provider=MeterProvider([found.metrics]))
    remove = otel_llm.add_sink(found.timelines.append)
    _attempt.sinks.append(found.attempts.append)
    try:
        yield found
    finally:
        _attempt.sinks.remove(found.attempts.append)
        remove()
        otel_llm.uninstrument()


@contextlib.contextmanager
def first_served(process: object) -> Iterator[None]:
    """Where that is allowed, the session of this process gets a processor before all others (sched(7))."""
    group = Path(f"/proc/{process}/autogroup")
    with contextlib.suppress(OSError):
        group.write_text("-20")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            group.write_text("0")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Where that is allowed, the caller never waits for a processor: that would look like network."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def needs_vllm() -> None:
    """A missing engine is a visible skip, and with OTEL_LLM_REQUIRE_ENGINES=1 a failure."""
    try:
        import aiohttp  # noqa: F401 - the demo's server needs it
        import vllm  # noqa: F401 - is it installed at all?
    except ImportError as missing:
        if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def vllm(needs_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Receiver]]:
    """A real vLLM server that tells its times to clients that ask: its port, and what it exports."""
    from otel_llm.demo import tiny_model
    from otel_llm.demo.server import Server

    folder = tmp_path_factory.mktemp("vllm")
    with Receiver() as receiver:
        server = Server(tiny_model.build(folder / "model"), receiver.url, folder / "log")
        server._environment |= {"OTEL_LLM_TIMING": "1"}
        server.start()
        try:
            asyncio.run(server.ready())
            assert server._process is not None
            with first_served(server._process.pid):
                yield int(server.url.rpartition(":")[2]), receiver
        finally:
            server.stop(grace=10)
