"""
requests, on urllib3: every attempt of its adapter.

Upstream: requests/adapters.py, urllib3/connection.py
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlsplit

from otel_llm import faults
from otel_llm.clients import _attempt, _body
from otel_llm.patching import Call, Engine, Hook, Probe, Returned

Steps = Generator[None, Returned, Any]

_current: Final[ContextVar[_attempt.Attempt | None]] = ContextVar("otel_llm_requests_attempt", default=None)
_PORTS: Final = {"http": 80, "https": 443}


def _send(original: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        attempt = _begin(request)
        if attempt is None:
            return original(self, request, *args, **kwargs)
        token = _current.set(attempt)
        try:
            response = original(self, _outgoing(request, attempt), *args, **kwargs)
        except BaseException as error:
            _attempt.guard(attempt.ended, error)
            raise
        finally:
            _current.reset(token)
        _attempt.guard(_answered, response, request, attempt)
        return response

    return send


def _begin(request: Any) -> _attempt.Attempt | None:
    try:
        url = urlsplit(request.url)
        port = url.port or _PORTS.get(url.scheme)
        return _attempt.begin(request.method, url.path, url.hostname, port, request.headers, request.body)
    except Exception as error:
        faults.swallow("requests.begin", error)
        return None


def _outgoing(request: Any, attempt: _attempt.Attempt) -> Any:
    """A copy with headers of ours; the body is the caller's own."""
    try:
        ours = request.copy()
        ours.headers.update(attempt.headers)
        return ours
    except Exception as error:
        faults.swallow("requests.outgoing", error)
        return request


def _answered(response: Any, request: Any, attempt: _attempt.Attempt) -> None:
    response.request = request
    raw = response.raw
    connection = getattr(raw, "_connection", None)
    attempt.answered(response.status_code, response.headers, getattr(connection, "sock", None))
    # On the object, and without a cycle: it has to be freed when the caller drops it.
    owner, kind = weakref.ref(raw), type(raw)

    def stream(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        return _body.watched(iter(kind.stream(owner(), *args, **kwargs)), attempt)

    def close() -> None:
        _attempt.guard(attempt.ended, GeneratorExit())
        if (this := owner()) is not None:
            kind.close(this)

    raw.stream, raw.close = stream, close


def _hooks(_probe: Probe) -> tuple[Hook, ...]:
    def request(_call: Call) -> Steps:
        attempt = _current.get()
        if attempt is not None:
            attempt.leaves()
        yield

    def connect(_call: Call) -> Steps:
        yield
        attempt = _current.get()
        if attempt is not None:
            attempt.leaves()

    place = "urllib3.connection:"
    return (
        Hook(("requests.adapters:HTTPAdapter.send",), replacement=_send, required=False),
        Hook((f"{place}HTTPConnection.request",), request, required=False),
        Hook((f"{place}HTTPConnection.connect",), connect, required=False),
        Hook((f"{place}HTTPSConnection.connect",), connect, required=False),
    )


CLIENT = Engine("requests", "requests", ("requests",), _hooks)
