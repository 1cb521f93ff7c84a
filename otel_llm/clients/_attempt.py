"""
One attempt of an HTTP library, watched: what all clients share.

The library's file tells when the connection stood, when the head of the answer
was there, and how long each read of the body took.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from otel_llm import faults, outlet, pairing, routes, sse, tcp
from otel_llm.client_timeline import ClientTimeline
from otel_llm.timeline import ENGINE_PHASES, Outcome, ending, wall_offset

sinks: Final[list[Callable[[ClientTimeline], None]]] = []
"""Called with every finished attempt, as data."""

_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){1,256}")')
_METRICS: Final = re.compile(rb'"metrics"\s*:\s*(?={)')
_SEARCHED: Final = 1 << 16
"""Bytes at either end of a request that are searched for the model's name."""
_ENDS: Final = sse.ENDS
WAIT_NS: Final = 1_000_000
"""A read that takes longer had to wait for data, one of what is there already takes less."""
HELD_NS: Final = 100_000
"""A caller who comes back sooner has not held the stream."""
_TAIL: Final = 16
"""Last chunks of a stream that are kept: they hold what the server says at the end."""
_HEAD: Final = 1 << 18
"""Most bytes of a stream that are kept in search of the first token."""
SPARE_NS: Final = 20_000_000
"""
How much longer than its client waited a server may say that it was at work,
beside a thousandth: it dates an arrival by ticks of its kernel, up to 10 ms.
"""


def begin(
    method: str, path: str, address: str | None, port: int | None, headers: Mapping[str, str], body: object
) -> Attempt | None:
    """Watch this attempt, if text is generated on that route. Never raises."""
    try:
        out = outlet.active
        operation = routes.operation(path) if method == "POST" else None
        return None if out is None or operation is None else Attempt(out, operation, path, address, port, headers, body)
    except Exception as error:
        faults.swallow("client.begin", error)
        return None


class Attempt:
    """Stamps of one attempt. Its methods may raise: they are called through ``guard``."""

    __slots__ = (
        "_about", "_answered", "_first", "_first_backlog", "_first_body", "_head", "_looking",
        "_offset", "_open", "_provider", "_server", "_span", "_status", "_stream", "_tail", "backlog", "got", "headers",
        "keep", "sent", "socket", "started",
    )  # fmt: skip

    def __init__(
        self,
        out: outlet.Outlet,
        operation: str,
        path: str,
        address: str | None,
        port: int | None,
        headers: Mapping[str, str],
        body: object,
    ) -> None:
        self.started, self._offset = time.monotonic_ns(), wall_offset()
        self.sent: int | None = None
        self.socket: Any = None
        self._about: dict[str, Any] = {
            "operation": operation,
            "model": _model(body),
            "address": address,
            "port": port,
            "resend": _count(headers.get("x-stainless-retry-count")),
        }
        self._provider = "anthropic" if path.endswith("/messages") else "openai"
        self._answered: int | None = None
        self._status: int | None = None
        self._first: int | None = None
        self._first_body: int | None = None
        self._server: pairing.ServerTiming | None = None
        self._first_backlog = 0
        self.got = 0
        """When the last part of the answer was handed over, 0 before."""
        self.backlog = 0
        """Nanoseconds by which the caller may have fallen behind."""
        self._stream = False
        self._looking = True
        self._head = b""
        self._tail: deque[bytes] = deque(maxlen=_TAIL)
        self.keep = self._tail.append
        """Takes a chunk that is as usual."""
        self._open = True
        self._span = out.begin_client(operation, self._about["model"], self.started + self._offset)
        self.headers: dict[str, str] = {pairing.ASK: "1"}
        """To be sent along."""
        if self._span is not None and "traceparent" not in headers:
            self.headers.update(self._span.headers)

    def leaves(self) -> None:
        """The connection stands, the first byte of the request is about to leave."""
        self.sent = time.monotonic_ns()

    def asks(self, body: bytes) -> None:
        """What is asked for, where that is told later than the attempt's beginning."""
        if self._about["model"] is None:
            self._about["model"] = _model(body)

    def answered(self, status: int, headers: Mapping[str, str], socket: Any) -> None:
        """The head of the answer is there."""
        self._answered = self.got = time.monotonic_ns()
        self._status, self.socket = status, socket
        self._stream = headers.get("content-type", "").startswith("text/event-stream")
        self._server = pairing.from_header(headers.get(pairing.HEADER, ""))

    @property
    def usual(self) -> bool:
        """Whether a chunk that ends an event and is asked for at once needs no more than ``keep``."""
        return not self._looking and not self.backlog

    def took(self, asked: int, there: bool, data: bytes) -> None:
        """What the caller asked for at ``asked`` is handed over now. Called per chunk."""
        got = time.monotonic_ns()
        held = asked - self.got
        if got - asked > WAIT_NS and not there:
            self.backlog = 0  # who has to wait has caught up
        elif held > HELD_NS:
            self.backlog += held
        self.got = got
        self.keep(data)
        if self._looking:
            self._look(data, got)
        if data.endswith(_ENDS) and self._stream:
            self.ended(None)

    def _look(self, data: bytes, now: int) -> None:
        """Find the first token-bearing event among the whole events so far."""
        if self._first_body is None:
            self._first_body, self._first_backlog = now, self.backlog
            self._looking = self._stream
        if self._stream:
            events, _, self._head = (self._head + data).replace(b"\r\n", b"\n").rpartition(b"\n\n")
            if sse.bears_token(events):
                self._first, self._looking = now, False
            elif len(self._head) > _HEAD:
                self._looking = False

    def ended(self, error: BaseException | None) -> None:
        """The body is read (None), or the attempt failed, was cancelled or given up. Only the first call counts."""
        if not self._open:
            return
        self._open = False
        now = self.got if self.got and error is None else time.monotonic_ns()
        tail = b"".join(self._tail) if error is None else b""
        self._tail.clear()
        outcome, reason = self._outcome(error)
        if self._stream and error is None:
            self._server = pairing.from_comment(tail)
        if self._server is not None and not self._fits(self._server, now):
            self._server = None
        info = tcp.read(self.socket)
        timeline = ClientTimeline(
            **self._about,
            provider=self._provider if self._server is None else self._server.engine,
            started=self.started,
            sent=self.sent,
            answered=self._answered,
            first_body=self._first_body,
            first_token=self._first,
            ended=now,
            backlog=self.backlog,
            first_backlog=self._first_backlog,
            server=self._server,
            engine=None if self._server is not None else _engine(tail),
            rtt=None if info is None else info.rtt_us * 1000,
            wall_offset=self._offset,
            outcome=outcome,
            error_type=reason,
            status=self._status,
        )
        self.socket = None
        if self._span is not None:
            self._span.finish(timeline)
        for sink in tuple(sinks):
            sink(timeline)

    def _fits(self, server: pairing.ServerTiming, ended: int) -> bool:
        """Whether the server can have been at work for so long: no longer than this client waited for it."""
        waited = ended - (self.started if self.sent is None else self.sent)
        return server.total <= waited + waited // 1000 + SPARE_NS

    def _outcome(self, error: BaseException | None) -> tuple[Outcome, str | None]:
        if error is None and self._status is not None and self._status >= 400:
            return ("reject" if self._status < 500 else "error"), str(self._status)
        return ending(error, accepted=True)


def guard(act: Callable[..., None], *args: Any) -> None:
    """Tell an attempt something; an error of ours is swallowed and counted."""
    try:
        act(*args)
    except Exception as error:
        faults.swallow("client.attempt", error)


def there(attempt: Attempt) -> bool:
    """Whether a caller who has fallen behind will find more of the body without waiting."""
    return attempt.backlog > WAIT_NS and bool(tcp.unread(attempt.socket))


def _model(body: object) -> str | None:
    if isinstance(body, str):
        body = body[:_SEARCHED].encode("utf-8", "replace")
    if not isinstance(body, (bytes, bytearray)):
        return None
    found = _MODEL.search(body[:_SEARCHED]) or _MODEL.search(body[-_SEARCHED:])
    if found is None:
        return None
    written = found.group(1).decode("utf-8", "replace")
    try:
        return str(json.loads(written))
    except ValueError:
        return written[1:-1]


def _count(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4 else 0


def _engine(tail: bytes) -> pairing.ServerTiming | None:
    """vLLM's ``metrics`` object, in the last chunk of a stream or in a plain answer; milliseconds there."""
    places = [found.end() for found in _METRICS.finditer(tail)]
    if not places:
        return None
    try:
        content, _ = json.JSONDecoder().raw_decode(tail[places[-1] :].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    keys = ("queue_time_ms", "time_to_first_token_ms", "generation_time_ms")
    times = [content.get(key) for key in keys]
    if not all(isinstance(value, (int, float)) and 0 <= value < 1e9 for value in times):
        return None
    phases = {name: round(value * 1e6) for name, value in zip(ENGINE_PHASES, times, strict=True) if value is not None}
    return pairing.ServerTiming(phases, "vllm")
