"""ASGI middleware for a vLLM server under test: says at /probe what is left of requests in its process."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from otel_llm import edge
from otel_llm.edge import ServerEdge
from otel_llm.engines._vllm_request import Request
from otel_llm.engines._vllm_sample import Sample
from otel_llm.telemetry.context import Captured

Scope = MutableMapping[str, Any]
OURS = (ServerEdge, Request, Sample, Captured)


class Probe:
    """Answers one path, passes all else on."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/probe":
            await self.app(scope, receive, send)
            return
        gc.collect()
        here = edge.current.get()
        alive = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in OURS and thing is not here)
        processor = scope["app"].state.engine_client.output_processor
        left = {**alive, "request_states": len(processor.request_states), "parents": len(processor.parent_requests)}
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        body = json.dumps({"left": {name: count for name, count in left.items() if count}, "rss": pages * 4096})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body.encode()})
