"""
aiohttp: its own tracing up to the head of the answer, then the reader of the body.

Sessions that existed before ``instrument()`` are not watched.
https://docs.aiohttp.org/en/stable/tracing_reference.html
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from functools import cache
from typing import Any, Final

from otel_llm.clients import _attempt
from otel_llm.patching import Call, Engine, Hook, Probe, Returned

Steps = Generator[None, Returned, Any]

KEY: Final = "_otel_llm_attempt"


async def _begun(_session: Any, context: Any, params: Any) -> None:
    url = params.url
    context.otel_llm = _attempt.begin(params.method, url.path, url.host, url.port, params.headers, None)
    if context.otel_llm is not None:
        params.headers.update(context.otel_llm.headers)


async def _connected(_session: Any, context: Any, _params: Any) -> None:
    if context.otel_llm is not None:
        context.otel_llm.leaves()


async def _content(_session: Any, context: Any, params: Any) -> None:
    if context.otel_llm is not None:
        _attempt.guard(context.otel_llm.asks, params.chunk)


async def _answered(_session: Any, context: Any, params: Any) -> None:
    if context.otel_llm is not None:
        _attempt.guard(_watch, params.response, context.otel_llm)


async def _failed(_session: Any, context: Any, params: Any) -> None:
    if context.otel_llm is not None:
        _attempt.guard(context.otel_llm.ended, params.exception)


def _watch(response: Any, attempt: _attempt.Attempt) -> None:
    transport = getattr(response.connection, "transport", None)
    socket = None if transport is None else transport.get_extra_info("socket")
    attempt.answered(response.status, response.headers, socket)
    response.content = _reader()(response.content, attempt)


@cache
def _reader() -> type:
    """The class of watched readers; made when aiohttp is there."""
    base: Any = sys.modules["aiohttp"].StreamReader

    class Reader(base):  # type: ignore[misc] # known at run time only
        """Hands everything on to the reader that the connection feeds; has no state of the base class."""

        __slots__ = (KEY, "_otel_llm_inner")

        def __init__(self, inner: Any, attempt: _attempt.Attempt) -> None:
            self._otel_llm_inner = inner
            setattr(self, KEY, attempt)

        def __getattr__(self, name: str) -> Any:
            return getattr(object.__getattribute__(self, "_otel_llm_inner"), name)

    def reading(name: str) -> Any:
        async def read(self: Any, *args: Any, **kwargs: Any) -> Any:
            inner, attempt, asked = self._otel_llm_inner, getattr(self, KEY), time.monotonic_ns()
            ready = _attempt.there(attempt)
            try:
                value = await getattr(inner, name)(*args, **kwargs)
            except BaseException as error:
                _attempt.guard(attempt.ended, error)
                raise
            _attempt.guard(_took, inner, attempt, asked, ready, value)
            return value

        return read

    def handed_on(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._otel_llm_inner, name)(*args, **kwargs)

        return call

    iterators = {"iter_any", "iter_chunked", "iter_chunks"}
    readers = {"read", "readany", "readchunk", "readexactly", "readline", "readuntil"}
    for name, value in vars(base).items():
        if name in readers:
            setattr(Reader, name, reading(name))
        elif callable(value) and not name.startswith("__") and name not in iterators:
            setattr(Reader, name, handed_on(name))
    return Reader


def _took(inner: Any, attempt: _attempt.Attempt, asked: int, ready: bool, value: Any) -> None:
    data = value[0] if isinstance(value, tuple) else value
    if data:
        attempt.took(asked, ready, data)
    if inner.at_eof():
        attempt.ended(None)


def _hooks(_probe: Probe) -> tuple[Hook, ...]:
    def session(call: Call) -> Steps:
        tracing = sys.modules["aiohttp"].TraceConfig()
        tracing.on_request_start.append(_begun)
        tracing.on_connection_create_end.append(_connected)
        tracing.on_connection_reuseconn.append(_connected)
        tracing.on_request_chunk_sent.append(_content)
        tracing.on_request_end.append(_answered)
        tracing.on_request_exception.append(_failed)
        call.replace("trace_configs", [*(call.get("trace_configs") or ()), tracing])
        yield

    def over(call: Call) -> Steps:
        attempt = getattr(call.instance.content, KEY, None)
        if attempt is not None:
            attempt.ended(GeneratorExit())
        yield

    place = "aiohttp.client_reqrep:ClientResponse."
    return (
        Hook(("aiohttp.client:ClientSession.__init__",), session, required=False),
        Hook((f"{place}release",), over, required=False),
        Hook((f"{place}close",), over, required=False),
    )


CLIENT = Engine("aiohttp", "aiohttp", ("aiohttp",), _hooks)
