"""ASGI middleware for a server under test: says at /account what it has made, sent and lost, and what it uses."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import otel_llm
from otel_llm.timeline import Timeline


def size(timeline: Timeline) -> int:
    """Spans that a request is told with."""
    return 1 + len(timeline.phases()) + sum(size(child) for child in timeline.children)


class Account:
    """Answers one path, passes all else on."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.requests = self.spans = 0
        otel_llm.add_sink(self.count)

    def count(self, timeline: Timeline) -> None:
        self.requests += 1
        self.spans += size(timeline)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/account":
            await self.app(scope, receive, send)
            return
        said = asdict(otel_llm.status())
        said = {key: said[key] for key in ("exported", "dropped", "capped", "errors")}
        said |= {"requests": self.requests, "spans": self.spans, "threads": threading.active_count()}
        said["rss"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        said["blocks"] = sys.getallocatedblocks()
        said["files"] = len(os.listdir("/proc/self/fd"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})
