"""
uvicorn, with httptools or h11, on asyncio or uvloop: what its protocols know of a request.

The class of the protocol is told of every packet, its cycle runs the
application. Upstream: uvicorn/protocols/http/{httptools_impl,h11_impl,zttp_impl}.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from otel_llm import faults, outlet, tcp
from otel_llm.patching import Engine, Hook, Probe, Ready
from otel_llm.servers import asgi
from otel_llm.servers._connection import Connection

KEY: Final = "_otel_llm"


class _Connection(Connection):
    """One request on a connection of uvicorn."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: Any) -> None:
        super().__init__()
        self._cycle = cycle
        self.flow, self.transport = cycle.flow, cycle.transport

    def gone(self) -> bool:
        return bool(self._cycle.disconnected)


def _data_received(original: Callable[..., None]) -> Callable[..., None]:
    def data_received(self: Any, data: bytes) -> None:
        now, before = time.monotonic_ns(), self.cycle
        original(self, data)
        try:
            _stamp(self, before, now)
        except Exception as error:
            faults.swallow("uvicorn.data_received", error)

    return data_received


def _stamp(protocol: Any, before: Any, now: int) -> None:
    """What this packet was: a request's beginning, its end, or a piece of it."""
    cycle = protocol.cycle
    if cycle is not before:
        info = tcp.read(protocol.transport.get_extra_info("socket"))
        connection = _Connection(cycle)
        connection.parsed = now
        begun = vars(protocol).pop(KEY, None)
        if info is not None:
            connection.arrived = begun or now - info.last_received_ms * 1_000_000
            connection.peer_limited_us = info.peer_limited_us
        if not cycle.more_body:
            connection.received = now
        setattr(cycle, KEY, connection)
    elif cycle is None or cycle.response_complete:
        if KEY not in vars(protocol):  # the head of a request is still on its way
            setattr(protocol, KEY, _arrival(protocol, now))
    elif not cycle.more_body:
        known = getattr(cycle, KEY, None)
        if known is not None and known.received is None:
            # A body that waited for the event loop was not on its way in that time.
            known.received = max(known.parsed, _arrival(protocol, now) or now)


def _arrival(protocol: Any, now: int) -> int | None:
    info = tcp.read(protocol.transport.get_extra_info("socket"))
    return None if info is None else now - info.last_received_ms * 1_000_000


def _run_asgi(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_asgi(self: Any, app: asgi.App) -> Any:
        return original(self, partial(_serve, self, app))

    return run_asgi


async def _serve(cycle: Any, app: asgi.App, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
    out = outlet.active
    if out is None:
        return await app(scope, receive, send)
    connection = getattr(cycle, KEY, None)
    if connection is None:  # it came in one packet with the request before it
        connection = _Connection(cycle)
        connection.parsed = time.monotonic_ns()
    return await asgi.serve(out, app, connection, scope, receive, send)


def _startup(ready: Ready, original: Callable[..., Any]) -> Callable[..., Any]:
    async def startup(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)
        ready()  # now, when the application has set its providers, and not in the first request

    return startup


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    start = partial(_startup, probe.ready)
    hooks = [Hook(("uvicorn.server:Server.startup",), replacement=start, required=False)]
    for module, protocol in (
        ("httptools_impl", "HttpToolsProtocol"),
        ("h11_impl", "H11Protocol"),
        ("zttp_impl", "ZttpProtocol"),
    ):
        place = f"uvicorn.protocols.http.{module}:"
        hooks.append(Hook((f"{place}{protocol}.data_received",), replacement=_data_received, required=False))
        hooks.append(Hook((f"{place}RequestResponseCycle.run_asgi",), replacement=_run_asgi, required=False))
    return tuple(hooks)


SERVER = Engine("uvicorn", "uvicorn", ("uvicorn",), _hooks)
