"""A real uvicorn server in this process, and everything that it is told of requests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.client_timeline import ClientTimeline
from otel_llm.testing import assert_adds_up
from otel_llm.timeline import Timeline


@dataclass
class Recorded:
    """What left this process."""

    timelines: list[Timeline] = field(default_factory=list)
    attempts: list[ClientTimeline] = field(default_factory=list)
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def one(self, seconds: float = 10) -> Timeline:
        """The only request since the last call."""
        self.wait(1, seconds)
        assert len(self.timelines) == 1, self.timelines
        return self.timelines.pop()

    def wait(self, count: int, seconds: float = 10) -> None:
        limit = time.monotonic() + seconds
        while len(self.timelines) < count and time.monotonic() < limit:
            time.sleep(0.005)
        assert len(self.timelines) >= count, f"{len(self.timelines)} of {count} requests were reported"

    def none(self, seconds: float = 0.3) -> None:
        time.sleep(seconds)
        assert self.timelines == []


def phases(timeline: Timeline) -> dict[str, float]:
    """Milliseconds per phase; those of the same name are added up."""
    found: dict[str, float] = {}
    for phase in timeline.phases():
        found[phase.name] = found.get(phase.name, 0.0) + phase.duration / 1e6
    assert_adds_up(timeline)
    return found


@contextlib.contextmanager
def serving(app: Callable[..., Any], **options: Any) -> Iterator[int]:
    """Serve an ASGI application on a free port of this host, in a thread."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    limit = time.monotonic() + 20
    while not server.started and time.monotonic() < limit:
        time.sleep(0.01)
    assert server.started
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
