"""
Work that changes threads before it reaches ``generate``. Not an engine: files that start with ``_`` are none.

A new thread knows neither the caller's span nor its HTTP request. The caller's
context is kept where the work is handed over, and used where it starts if that
thread has none of its own.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from otel_llm.engines import _transformers_here as here
from otel_llm.patching import Body, Call, Hook, Returned

Steps = Generator[None, Returned, Any]

_KEY: Final = "_otel_llm_origin"


class Errand:
    """A function handed to another thread: runs it, unchanged, and remembers where it came from."""

    def __init__(self, function: Callable[..., Any], *, queued: bool) -> None:
        self.context = contextvars.copy_context()
        self.submitted: int | None = time.monotonic_ns() if queued else None
        """When it began to wait for a thread that does nothing but generate."""
        self.started = 0
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run in the thread that took the errand."""
        self.started = time.monotonic_ns()
        token = here.errand.set(self)
        try:
            return self._function(*args, **kwargs)
        finally:
            here.errand.reset(token)

    def waited(self) -> tuple[int, int] | None:
        """(submitted, started) in monotonic nanoseconds, for the first request of the errand."""
        if self.submitted is None:
            return None
        wait, self.submitted = (self.submitted, self.started), None
        return wait


def carried(streamer: Any, errand: Errand | None) -> contextvars.Context | None:
    """The context of the thread that handed this work over, if it was handed over, or its streamer was."""
    kept = vars(streamer).pop(_KEY, None) if hasattr(streamer, "__dict__") else None
    if errand is not None:
        return errand.context
    # A streamer may be built long before its use, but then in the thread that uses it.
    return kept[1] if kept is not None and kept[0] != threading.get_ident() else None


def _hand_over(*, queued: bool) -> Body:
    def body(call: Call) -> Steps:
        if call.args:
            function, *rest = call.args
            call.args = (Errand(function, queued=queued), *rest)
        yield

    return body


def _keep_origin(call: Call) -> Steps:
    yield
    setattr(call.instance, _KEY, (threading.get_ident(), contextvars.copy_context()))


HOOKS: Final = (
    Hook(("transformers.generation.streamers:TextStreamer.__init__",), _keep_origin, required=False),
    Hook(("concurrent.futures.thread:ThreadPoolExecutor.submit",), _hand_over(queued=False), required=False),
    # `transformers serve`: one thread per model, requests wait for it.
    Hook(("transformers.cli.serving.utils:InferenceThread.submit",), _hand_over(queued=True), required=False),
    Hook(("transformers.cli.serving.utils:InferenceThread.async_submit",), _hand_over(queued=True), required=False),
)
