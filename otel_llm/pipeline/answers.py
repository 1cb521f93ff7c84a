"""
Answers of a collector, read up to a limit.

The OTLP exporters over HTTP read whatever body they are answered with; the one
that OTLP defines has some hundred bytes. Over gRPC the channel has a limit.
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

ANSWER_LIMIT = 64 * 2**10
"""Longest body of an answer that is read, bytes."""

_PIECE = 8192


class TooLong(requests.RequestException):
    """The answer is no answer to an OTLP request. No exporter tries again after it."""


class _Capped(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Read the whole body, as a session does by itself if it is not streamed. Raises TooLong."""
        response = super().send(request, *args, **options)
        body = bytearray()
        for piece in response.iter_content(_PIECE):  # as unpacked: a small body may hold a large one
            body += piece
            if len(body) > ANSWER_LIMIT:
                response.close()
                raise TooLong(response=response)
        response._content = bytes(body)
        return response


def session() -> requests.Session:
    """Make a session that never reads more than ``ANSWER_LIMIT`` of an answer, a redirection included."""
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Capped())
    return made
