"""
One HTTP exchange of any ASGI application, watched at its edge.

Per message of a stream it costs one plain call: no clock, no parsing, once the
first token has been sent.
https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from otel_llm import edge, faults, outlet, pairing, routes, sse, tcp
from otel_llm.servers import _delivery
from otel_llm.servers._connection import Connection
from otel_llm.servers._telling import Telling, is_stream
from otel_llm.timeline import Outcome

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_SECONDS: Final = 5.0
"""How long a finished HTTP request waits for an engine request that has not been handed over."""

BLOCKED_NS: Final = 1_000_000
"""A send that takes longer had to wait, where the server does not say so."""

_READ: Final = (b"traceparent", b"tracestate", pairing.ASK.encode())
"""All headers that are looked at."""

_ROUTES_KEPT: Final = 128
_reached: Final[dict[str, tuple[str, str]]] = {}
"""Routes that have led to an engine, and to which: their failures are requests too."""


class Exchange:
    """One HTTP request: stands between the application and ``send``."""

    __slots__ = (
        "_connection",
        "_edge",
        "_flow",
        "_looked",
        "_quick",
        "_scope",
        "_send",
        "_status",
        "_stream",
        "_telling",
    )

    def __init__(self, out: outlet.Outlet, scope: Scope, send: Send, connection: Connection) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ()) if name in _READ
        }
        asked = headers.pop(pairing.ASK, "") == "1"
        self._telling = Telling() if asked and out.timing else None
        self._edge = edge.ServerEdge(out.emit, out.capture, headers)
        edge.current.set(self._edge)
        self._scope, self._send, self._connection = scope, send, connection
        self._flow = connection.flow
        self._status = 0
        self._stream = self._quick = False
        self._looked = 0

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message. Called per token."""
        if (
            self._quick
            and not self._flow.write_paused
            and message.get("more_body")
            and not (self._telling and self._telling.may_end(message.get("body", b"")))
        ):
            return self._send(message)
        return self._watched(message)

    async def _watched(self, message: Message) -> None:
        if self._telling:
            try:
                message = self._told(self._telling, message)
            except Exception as error:
                faults.swallow("asgi.timing", error)
        flow = self._flow
        paused = flow is not None and flow.write_paused
        before = time.monotonic_ns()
        try:
            await self._send(message)
        finally:
            after = time.monotonic_ns()
            if paused or (flow is None and after - before > BLOCKED_NS):
                self._edge.blocked.append((before, after))
        try:
            self._sent(message, after)
        except Exception as error:
            faults.swallow("asgi.sent", error)

    def _told(self, telling: Telling, message: Message) -> Message:
        message = telling.told(message, self._timing)
        if telling.over:
            self._telling = None
        return message

    def _timing(self) -> pairing.ServerTiming | None:
        connection = self._connection
        self._stamp()
        transport, before = connection.transport, connection.peer_limited_us
        info = None if transport is None or before is None else tcp.read(transport.get_extra_info("socket"))
        limited = info is not None and before is not None and info.peer_limited_us > before
        return self._edge.timing(limited)

    def _stamp(self) -> None:
        server, connection = self._edge, self._connection
        server.arrived, server.parsed, server.received = connection.arrived, connection.parsed, connection.received

    def _sent(self, message: Message, now: int) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._stream = is_stream(message)
        elif message["type"] == "http.response.body":
            if not self._quick:
                self._look(bytes(message.get("body", b"")), now)
            if not message.get("more_body"):
                outcome, reason = _meaning(self._status)
                if self._connection.gone():
                    outcome, reason = "abort", "disconnect"
                self.end(outcome, reason, now)

    def _look(self, body: bytes, now: int) -> None:
        """Find the first message that bears a token; then nothing more is looked at."""
        if body and self._edge.first_body is None:
            self._edge.first_body = now
        found = bool(body) and (not self._stream or sse.bears_token(body))
        if found:
            self._edge.first_token = now
        self._looked += 1
        if found or self._looked >= sse.LOOKED_AT:
            self._quick = self._flow is not None

    def failed(self, error: BaseException) -> None:
        """The application raised."""
        name = type(error).__name__
        if self._connection.gone() or name == "ClientDisconnect":
            self._abandoned("disconnect")
        elif name == "CancelledError":
            self._abandoned("cancelled")
        else:
            self.end("error", name, time.monotonic_ns())

    def left(self) -> None:
        """The application returned: an answer that is not complete by now never will be."""
        edge.current.set(None)
        if self._edge.ended is not None:
            return
        if self._connection.gone() is False:
            self.end("error", "incomplete", time.monotonic_ns())
        else:
            self._abandoned("disconnect")

    def _abandoned(self, reason: str) -> None:
        self.end("abort", reason, time.monotonic_ns())

    def end(self, outcome: Outcome, reason: str | None, now: int) -> None:
        """The exchange is over; report it when its engines and its last bytes are through."""
        server, connection = self._edge, self._connection
        if server.ended is not None:
            return
        server.ended, server.outcome, server.error_type = now, outcome, reason
        self._stamp()
        self._learn()
        if not server.reached and not server.waiting and (outcome == "ok" or server.refusal is None):
            server.settled = True
            return
        if outcome == "ok":
            _delivery.measure(server, connection, lambda: _settle(server))
        else:
            _settle(server)

    def _learn(self) -> None:
        method, path = self._scope.get("method"), self._scope.get("path", "")
        route = f"{method} {getattr(self._scope.get('route'), 'path', path)}"
        if self._edge.reached:
            if route not in _reached and len(_reached) < _ROUTES_KEPT:
                for engine in self._edge.engines[:1]:
                    _reached[route] = (engine.engine, engine.operation)
            return
        self._edge.refusal = _reached.get(route)
        state = getattr(self._scope.get("app"), "state", None)
        if self._edge.refusal is None and method == "POST" and getattr(state, "engine_client", None) is not None:
            operation = routes.operation(path)
            self._edge.refusal = None if operation is None else ("vllm", operation)


async def serve(
    out: outlet.Outlet, app: App, connection: Connection, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the application with its exchange watched."""
    try:
        exchange = Exchange(out, scope, send, connection)
    except Exception as error:
        faults.swallow("asgi.begin", error)
        return await app(scope, receive, send)
    try:
        return await app(scope, receive, exchange.send)
    except BaseException as error:
        _guarded(exchange.failed, error)
        raise
    finally:
        _guarded(exchange.left)


class EdgeMiddleware:
    """
    The server edge as ASGI middleware: ``app.add_middleware(EdgeMiddleware)``.

    For servers without hooks of their own; under one that has them it passes
    everything through. Put it outermost. Does nothing before ``instrument()``.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        out = outlet.active
        if out is None or scope["type"] != "http" or edge.current.get() is not None:
            return await self.app(scope, receive, send)
        connection = Connection()
        connection.parsed = time.monotonic_ns()

        async def receiving() -> Message:
            message = await receive()
            if connection.received is None and not message.get("more_body"):
                connection.received = time.monotonic_ns()
            return message

        return await serve(out, self.app, connection, scope, receiving, send)


def _guarded(act: Callable[..., None], *args: Any) -> None:
    try:
        act(*args)
    except Exception as error:
        faults.swallow("asgi.end", error)


def _settle(server: edge.ServerEdge) -> None:
    server.settled = True
    if server.waiting:
        loop = asyncio.get_running_loop()
        server.wake = functools.partial(loop.call_soon_threadsafe, server.report)
        loop.call_later(LINGER_SECONDS, server.report)
    else:
        server.report()


def _meaning(status: int) -> tuple[Outcome, str | None]:
    if status < 400:
        return "ok", None
    if status == 499:
        return "abort", "disconnect"
    return ("reject" if status < 500 else "error"), str(status)
