"""
Server-sent events, as far as times need them: which event is the first to bear a token.

Both edges use the same definition, so that their stamps are of the same event.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from typing import Any, Final

LOOKED_AT: Final = 256
"""Events that are parsed in search of the first token; after that it stays unknown."""

LARGEST: Final = 64 * 2**10
"""Longest piece of a stream that is parsed, bytes: one that is longer bears output."""

DONE: Final = b"[DONE]"
"""The data of the event that ends a stream of the OpenAI API."""

ENDS: Final = tuple(DONE + line for line in (b"\n\n", b"\n", b"\r\n\r\n", b"\r\n", b""))
"""What the last bytes of such a stream are; cheaper to look for than the data anywhere."""

BRACE: Final = b"}"
"""Third from the end where any other event ends; cheaper to look for still."""


def bears_token(event: bytes) -> bool:
    """
    Whether the bytes of one or more whole events hold output of the model.

    Comments (keep-alive), role-only and usage-only chunks and the end mark do
    not. Knows the chunks of the OpenAI completions, chat and responses API and
    of the Anthropic API; of other JSON every object counts.
    """
    if len(event) > LARGEST:
        return True
    return any(line.startswith(b"data:") and _is_output(line[5:].strip()) for line in event.splitlines())


def _is_output(data: bytes) -> bool:
    if not data or data == b"[DONE]":
        return False
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return True
    if not isinstance(chunk, dict):
        return True
    choices = chunk.get("choices")
    if isinstance(choices, list):
        return any(_of_choice(choice) for choice in choices)
    kind = chunk.get("type")
    if isinstance(kind, str):
        return kind != "message_delta" and kind.endswith((".delta", "_delta")) and bool(chunk.get("delta"))
    return "error" not in chunk


def _of_choice(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(value for key, value in delta.items() if key != "role")
    return bool(choice.get("text"))
