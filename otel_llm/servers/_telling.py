"""Where a server's times go in its answer: into a header of a plain one, into a comment before the end of a stream."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Final

from otel_llm import pairing, sse

_EMPTY_LINE: Final = (b"\n\n", b"\n\r\n", b"\r\r")
"""What ends an event. A comment anywhere else would be part of one, or cut it in two."""
_AS_IT_IS: Final = (b"content-length", b"content-encoding")
"""Headers of a stream that takes no comment: its length is given, or it is packed."""


class Telling:
    """The ASGI messages of one answer whose client wants to know."""

    __slots__ = ("_last", "over")

    def __init__(self) -> None:
        self._last: bytes = _EMPTY_LINE[0]
        """The end of what was sent."""
        self.over = False
        """Whether the times are told, or cannot be."""

    def may_end(self, body: bytes) -> bool:
        """Whether this piece may be the end of a stream. Called per token."""
        if body[-3:-2] == sse.BRACE:
            self._last = body
            return False
        if bytes(body).endswith(sse.ENDS):
            return True
        self._sent(body)
        return False

    def told(
        self, message: MutableMapping[str, Any], timing: Callable[[], pairing.ServerTiming | None]
    ) -> MutableMapping[str, Any]:
        """The message with the times in it, if this is where they belong."""
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]  # which may be read once
            message = {**message, "headers": headers}
            stream = is_stream(message)
            self.over = not stream or any(name.lower() in _AS_IT_IS for name, _ in headers)
            if not stream and (now := timing()) is not None:
                headers.append((pairing.HEADER.encode(), pairing.to_header(now).encode("latin-1")))
            return message
        body = bytes(message.get("body", b""))
        place = body.rfind(b"data: " + sse.DONE)
        if place < 0 or not (bytes(self._last[-3:]) + body[:place]).endswith(_EMPTY_LINE):
            self._sent(body)
            return message
        self.over = True
        if (now := timing()) is None:
            return message
        return {**message, "body": body[:place] + pairing.to_comment(now) + body[place:]}

    def _sent(self, body: bytes) -> None:
        self._last = body if len(body) > 2 else bytes(self._last[-3:]) + body


def is_stream(start: MutableMapping[str, Any]) -> bool:
    """Whether the answer that starts so is one of server-sent events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
