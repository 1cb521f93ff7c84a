"""
A TCP link with a delay and a rate for each direction, as a process of its own.

``python link.py TARGET_PORT UP_MS DOWN_MS UP_BYTES_PER_S DOWN_BYTES_PER_S``;
a rate of 0 is no limit. Prints its own port, then one line of JSON per piece
of data that it has passed on: direction, when it came in and when it went out
(``time.monotonic_ns``, which all processes of a host share), and whether the
end mark of an event stream is in it. It must not wait for a processor: where
that is allowed it runs before all ordinary programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PIECE = 4096
_print = threading.Lock()


class Piece(NamedTuple):
    """What the link passed on; nanoseconds."""

    direction: str
    entered: int
    left: int
    done: bool
    """Whether it holds the end mark of an event stream."""


class Truth(NamedTuple):
    """What the link did to one request and its answer; nanoseconds."""

    took: int
    """From the first byte of the request going in to its last coming out, and the time of the answer's end."""
    delivered: int
    """When the answer's end came out."""


@dataclass
class Link:
    """A running link."""

    port: int
    pieces: list[Piece]

    def truth(self) -> Truth:
        """About the only request since the last call."""
        time.sleep(0.1)
        up = [piece for piece in self.pieces if piece.direction == "up"]
        down = [piece for piece in self.pieces if piece.direction == "down"]
        end = next((piece for piece in down if piece.done), down[-1])
        self.pieces.clear()
        return Truth(up[-1].left - up[0].entered + end.left - end.entered, end.left)


@contextlib.contextmanager
def link(target: int, *, up: float = 0, down: float = 0, up_rate: float = 0, down_rate: float = 0) -> Iterator[Link]:
    """Delays in milliseconds, rates in bytes per second."""
    command = [sys.executable, __file__, *map(str, (target, up, down, up_rate, down_rate))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        running = Link(int(process.stdout.readline()), [])

        def collect() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                running.pieces.append(Piece(*json.loads(line)))

        threading.Thread(target=collect, daemon=True).start()
        try:
            yield running
        finally:
            process.kill()


def pass_on(direction: str, source: socket.socket, sink: socket.socket, delay: float, rate: float) -> None:
    held: queue.SimpleQueue[tuple[int, int, bytes]] = queue.SimpleQueue()
    threading.Thread(target=release, args=(direction, held, sink), daemon=True).start()
    free = 0
    while True:
        try:
            data = source.recv(PIECE)
        except OSError:
            data = b""
        entered = time.monotonic_ns()
        if rate:
            free = max(free, entered) + round(len(data) / rate * 1e9)
        held.put((entered, max(entered, free) + round(delay * 1e6), data))
        if not data:
            return


def release(direction: str, held: queue.SimpleQueue[tuple[int, int, bytes]], sink: socket.socket) -> None:
    while True:
        entered, due, data = held.get()
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        left = time.monotonic_ns()  # not after sending: that may wake up the receiver in our place
        try:
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
        if not data:
            return
        with _print:
            tell(json.dumps((direction, entered, left, b"[DONE]" in data)))


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    target, up, down, up_rate, down_rate = (float(argument) for argument in sys.argv[1:])
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    listener = socket.create_server(("127.0.0.1", 0))
    tell(str(listener.getsockname()[1]))
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", int(target)))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for arguments in (("up", client, server, up, up_rate), ("down", server, client, down, down_rate)):
            threading.Thread(target=pass_on, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
