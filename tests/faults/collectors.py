"""Collectors with one fault each, over both protocols of OTLP. What they accept is in their receiver."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from otel_llm.report.receiver import Receiver

PROTOCOLS: Final = ("http/protobuf", "grpc")
FAULTS: Final = ("absent", "silent", "slow", "unauthorized", "unavailable", "untrusted", "huge")
SLOW_SECONDS: Final = 2.0
HUGE: Final = 400 * 2**20
_PIECE: Final = bytes(2**20)
_HTTP_STATUS: Final = {"unauthorized": 401, "unavailable": 503}
_GRPC_STATUS: Final = {
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}


@dataclass
class Collector:
    """Where it is, and what it took."""

    url: str
    protocol: str
    receiver: Receiver = field(default_factory=Receiver)
    sent: list[bytes] = field(default_factory=list)
    """All that it was sent: headers and bodies over HTTP, messages over gRPC."""
    unanswered: list[bytes] = field(default_factory=list)
    """Spans that it took over HTTP whose sender never read that it did: it had given up, or the collector was gone."""


@contextlib.contextmanager
def collector(protocol: str, fault: str, folder: Path, port: int = 0, **keepers: Any) -> Iterator[Collector]:
    """A collector that is healthy or has the fault of this name; ``keepers`` are fields of ``Collector``."""
    if fault == "absent":
        with socket.socket() as taken:  # bound, but nothing listens
            taken.bind(("127.0.0.1", port))
            yield Collector(f"http://127.0.0.1:{taken.getsockname()[1]}", protocol, **keepers)
    elif fault == "silent":
        with socket.create_server(("127.0.0.1", port), backlog=64) as hole:
            yield Collector(f"http://127.0.0.1:{hole.getsockname()[1]}", protocol, **keepers)
    else:
        made = _http if protocol == "http/protobuf" else _grpc
        with made(fault, _identity(folder) if fault == "untrusted" else None, port, keepers) as found:
            yield found


@contextlib.contextmanager
def _http(fault: str, identity: tuple[Path, Path] | None, port: int, keepers: dict[str, Any]) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answered: bytes | None = None

        def handle(self) -> None:
            reset = True
            with contextlib.suppress(ConnectionError):
                super().handle()
                reset = bool(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            # A sender that hangs up with an answer unread resets; so does one that finds this collector gone.
            if reset and self.answered is not None and not gone.is_set():
                found.unanswered.append(self.answered)

        def do_POST(self) -> None:
            self.answered = None  # the last one was read
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.sent += [self.path.encode(), bytes(self.headers), body]
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            status = _HTTP_STATUS.get(fault, 200)
            if status == 200 and fault != "huge":
                take(found.receiver, self.path.rpartition("/")[2], body)
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(HUGE if fault == "huge" else 0))
            traces = self.path.endswith("traces")
            try:
                self.end_headers()
            except OSError:
                if traces:
                    found.unanswered.append(body)
                raise
            self.answered = body if traces else None
            if fault == "huge":
                with contextlib.suppress(OSError):  # the exporter may hang up
                    for _ in range(HUGE // len(_PIECE)):
                        self.wfile.write(_PIECE)

        def log_message(self, *_: object) -> None:
            """Nothing is printed per request."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        connections: ClassVar[list[socket.socket]] = []

        def get_request(self) -> tuple[socket.socket, Any]:
            accepted = super().get_request()
            self.connections.append(accepted[0])
            return accepted

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no error here."""

    gone = threading.Event()
    server = Server(("127.0.0.1", port), Handler)
    scheme = "http"
    if identity is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*identity)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found = Collector(f"{scheme}://localhost:{server.server_address[1]}", "http/protobuf", **keepers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        gone.set()
        for connection in server.connections:  # they would be served on
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def _grpc(fault: str, identity: tuple[Path, Path] | None, port: int, keepers: dict[str, Any]) -> Iterator[Collector]:
    found = Collector("", "grpc", **keepers)

    def handler(signal: str) -> Any:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            found.sent.append(body)
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            if fault in _GRPC_STATUS:
                context.abort(_GRPC_STATUS[fault], "no")
            if fault == "huge":
                return bytes(HUGE)
            take(found.receiver, signal, body)
            return b""

        return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    )
    for signal, service in (("traces", "trace.v1.TraceService"), ("metrics", "metrics.v1.MetricsService")):
        handlers = {"Export": handler(signal)}
        name = f"opentelemetry.proto.collector.{service}"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    if identity is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        key, certificate = identity[1].read_bytes(), identity[0].read_bytes()
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
    found.url = f"{'http' if identity is None else 'https'}://localhost:{bound}"
    server.start()
    try:
        yield found
    finally:
        server.stop(0).wait()


def take(receiver: Receiver, signal: str, body: bytes) -> None:
    """Hand one OTLP message to a receiver."""
    takers: dict[str, Callable[[bytes], None]] = {"traces": receiver.take_traces, "metrics": receiver.take_metrics}
    takers[signal](body)


def _identity(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody has signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    signed = (
        built.not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret
