"""
The HTTP session of the exporters: answers are read up to limits of size and time, forks are survived.

The OTLP exporters over HTTP read whatever body they are answered with, as long
as a byte of it comes within each timeout; the one that OTLP defines has some
hundred bytes. Over gRPC the channel has a limit, and a call a deadline.
"""

from __future__ import annotations

import os
import queue
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter

ANSWER_LIMIT = 16 * 2**10
"""Longest body of an answer that is read, bytes."""

ANSWER_SECONDS = 10.0
"""Longest time for which a body is read where the exporter sets none; what it sets for a request counts here again."""

_PIECE = 1
"""Bytes that are waited for between looks at the clock, 5 µs each; the usual answer has none, or two."""


class TooLong(requests.RequestException):
    """The answer, by its size or its pace, is none to an OTLP request. No exporter tries again after it."""


class _Idle(queue.LifoQueue[Any]):
    """
    Connections that wait for their next use; there are none in a forked child.

    urllib3 empties every pool when a process ends (``_close_pool_connections``),
    an inherited one too. Its lock is held for ever if a thread that exported
    held it in the moment of the fork: the child would not end.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._pid = os.getpid()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if os.getpid() != self._pid:
            raise queue.Empty
        return super().get(block, timeout)


def _survive_forks(manager: Any) -> None:
    """Let a ``urllib3.PoolManager`` keep its connections in ``_Idle``."""
    pools = manager.pool_classes_by_scheme.items()
    manager.pool_classes_by_scheme = {
        scheme: type(pool.__name__, (pool,), {"QueueCls": _Idle}) for scheme, pool in pools
    }


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        _survive_forks(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            _survive_forks(manager)
        return manager

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Read the whole body, as a session does by itself if it is not streamed. Raises TooLong."""
        response = super().send(request, *args, **options)
        timeout = options.get("timeout")
        late = time.monotonic() + (timeout if isinstance(timeout, (int, float)) else ANSWER_SECONDS)
        body = bytearray()
        for piece in response.iter_content(_PIECE):  # as unpacked: a small body may hold a large one
            body += piece
            if len(body) > ANSWER_LIMIT or time.monotonic() > late:
                response.close()
                raise TooLong(response=response)
        response._content = bytes(body)
        return response


def session() -> requests.Session:
    """Make a session that never reads more than ``ANSWER_LIMIT`` of an answer, a redirection included."""
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter())
    return made
