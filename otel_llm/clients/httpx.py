"""
httpx, and httpx2, which the openai SDK uses: one library under two names.

Hooked is the transport, so that every attempt counts, whatever retries above
it. Its trace extension tells when a connection stands.
Upstream: httpx/_transports/default.py, httpcore/_trace.py
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from otel_llm import faults
from otel_llm.clients import _attempt, _body
from otel_llm.patching import Engine, Hook, Probe

_LEAVES = ".send_request_headers.started"


def _begin(request: Any) -> _attempt.Attempt | None:
    url = request.url
    body = getattr(request, "_content", None)
    return _attempt.begin(request.method, url.path, url.host, url.port or _PORTS.get(url.scheme), request.headers, body)


_PORTS = {"http": 80, "https": 443}


def _trace(request: Any, attempt: _attempt.Attempt) -> Callable[..., None]:
    """A trace function that also calls the caller's own."""
    own = request.extensions.get("trace")

    def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(_LEAVES):
            attempt.leaves()
        if own is not None:
            own(event, info)

    return trace


def _trace_async(request: Any, attempt: _attempt.Attempt) -> Callable[..., Any]:
    own = request.extensions.get("trace")

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(_LEAVES):
            attempt.leaves()
        if own is not None:
            await own(event, info)

    return trace


def _outgoing(request: Any, attempt: _attempt.Attempt, trace: Callable[..., Any]) -> Any:
    """A request of our own with the caller's content: theirs stays as it is, for whatever they do with it next."""
    try:
        ours = object.__new__(type(request))
        vars(ours).update(vars(request))
        ours.headers = request.headers.copy()
        ours.headers.update(attempt.headers)
        ours.extensions = {**request.extensions, "trace": trace}
        return ours
    except Exception as error:
        faults.swallow("httpx.outgoing", error)
        return request


def _answered(response: Any, attempt: _attempt.Attempt, stream: Any) -> None:
    connection = response.extensions.get("network_stream")
    socket = None if connection is None else connection.get_extra_info("socket")
    attempt.answered(response.status_code, response.headers, socket)
    response.stream = stream


def _sync(original: Callable[..., Any]) -> Callable[..., Any]:
    library = sys.modules[original.__module__]  # the package itself may still be at its import

    class Body(library.SyncByteStream):  # type: ignore[misc, name-defined] # known at run time only
        def __init__(self, inner: Any, attempt: _attempt.Attempt) -> None:
            self._inner, self._attempt = inner, attempt

        def __iter__(self) -> Iterator[bytes]:
            return _body.watched(iter(self._inner), self._attempt)

        def close(self) -> None:
            _attempt.guard(self._attempt.ended, GeneratorExit())
            self._inner.close()

    def handle_request(self: Any, request: Any) -> Any:
        attempt = _begin(request)
        if attempt is None:
            return original(self, request)
        try:
            response = original(self, _outgoing(request, attempt, _trace(request, attempt)))
        except BaseException as error:
            _attempt.guard(attempt.ended, error)
            raise
        _attempt.guard(_answered, response, attempt, Body(response.stream, attempt))
        return response

    return handle_request


def _async(original: Callable[..., Any]) -> Callable[..., Any]:
    library = sys.modules[original.__module__]  # the package itself may still be at its import

    class Body(library.AsyncByteStream):  # type: ignore[misc, name-defined] # known at run time only
        def __init__(self, inner: Any, attempt: _attempt.Attempt) -> None:
            self._inner, self._attempt = inner, attempt

        def __aiter__(self) -> AsyncIterator[bytes]:
            return _body.watched_async(self._inner.__aiter__(), self._attempt)

        async def aclose(self) -> None:
            _attempt.guard(self._attempt.ended, GeneratorExit())
            await self._inner.aclose()

    async def handle_async_request(self: Any, request: Any) -> Any:
        attempt = _begin(request)
        if attempt is None:
            return await original(self, request)
        try:
            response = await original(self, _outgoing(request, attempt, _trace_async(request, attempt)))
        except BaseException as error:
            _attempt.guard(attempt.ended, error)
            raise
        _attempt.guard(_answered, response, attempt, Body(response.stream, attempt))
        return response

    return handle_async_request


def _hooks(_probe: Probe) -> tuple[Hook, ...]:
    return tuple(
        Hook((f"{library}._transports.default:{method}",), replacement=replacement, required=False)
        for library in ("httpx", "httpx2")
        for method, replacement in (
            ("HTTPTransport.handle_request", _sync),
            ("AsyncHTTPTransport.handle_async_request", _async),
        )
    )


CLIENT = Engine("httpx", "httpx", ("httpx", "httpx2"), _hooks)
