"""A small OTLP/HTTP receiver on loopback, which keeps what it is sent in memory."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final

from google.protobuf.message import DecodeError

from otel_llm.report import otlp

_LARGEST_BODY: Final = 64 * 2**20
_PROTOBUF: Final = "application/x-protobuf"
_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told of the format, by the name of the encoding."""


class Receiver:
    """
    Receives traces and metrics as protobuf over HTTP, on 127.0.0.1, by default on a free port.

    A context manager. Everything is kept, so it is meant for runs of minutes:
    all spans, and the newest point of every metric series.
    """

    def __init__(self, port: int = 0) -> None:
        self._lock = threading.Lock()
        self._spans: list[otlp.Span] = []
        self._points: dict[tuple[object, ...], otlp.Point] = {}
        self._refused = 0
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="otlp-receiver")

    @property
    def url(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` has to be, with protocol ``http/protobuf``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def refused(self) -> int:
        """Number of messages that could not be read."""
        return self._refused

    def spans(self, since: int = 0) -> list[otlp.Span]:
        """Spans in order of arrival, without the first ``since`` of them."""
        with self._lock:
            return self._spans[since:]

    def points(self, name: str) -> list[otlp.Point]:
        """The newest point of every series of a metric."""
        with self._lock:
            return [point for point in self._points.values() if point.name == name]

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take_traces(self, body: bytes) -> None:
        """Add the spans of an ``ExportTraceServiceRequest``."""
        decoded = list(otlp.spans(body))
        with self._lock:
            self._spans.extend(decoded)

    def take_metrics(self, body: bytes) -> None:
        """Add the points of an ``ExportMetricsServiceRequest``."""
        decoded = list(otlp.points(body))
        with self._lock:
            for point in decoded:
                series = (point.name, point.process, *sorted(point.attributes.items()))
                known = self._points.get(series)
                if known is None or known.time <= point.time:
                    self._points[series] = point

    def refuse(self) -> None:
        """Count a message that could not be read."""
        with self._lock:
            self._refused += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        super().__init__(address, _Handler)
        self.receiver = receiver


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - only _Server makes handlers

    def do_POST(self) -> None:
        """Take one OTLP message. The answer to a good one is an empty message: all accepted."""
        take = self._taker()
        told = self.headers.get("Content-Length", "")
        length = int(told) if told.isdecimal() and len(told) < 16 else 0
        body = self.rfile.read(length) if length <= _LARGEST_BODY else b""
        if take is None:
            self._answer(404)
        elif self.headers.get_content_type() != _PROTOBUF:
            self._answer(415)
        elif length > _LARGEST_BODY:
            self._answer(413)
        else:
            try:
                take(self._unpacked(body))
            except (DecodeError, ValueError, zlib.error):
                self.server.receiver.refuse()
                self._answer(400)
            else:
                self._answer(200)

    def _taker(self) -> Callable[[bytes], None] | None:
        receiver = self.server.receiver
        return {"/v1/traces": receiver.take_traces, "/v1/metrics": receiver.take_metrics}.get(self.path)

    def _unpacked(self, body: bytes) -> bytes:
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding == "identity":
            return body
        if encoding not in _WINDOW:
            raise ValueError(f"unknown encoding {encoding}")
        unpacker = zlib.decompressobj(_WINDOW[encoding])
        unpacked = unpacker.decompress(body, _LARGEST_BODY)
        if not unpacker.eof:
            raise ValueError("cut off, or too large")
        return unpacked

    def _answer(self, status: int) -> None:
        if status != 200:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", _PROTOBUF)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Nothing is printed per request."""
