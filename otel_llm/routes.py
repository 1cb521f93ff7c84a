"""The HTTP routes on which text is generated, and what is asked for there."""

from __future__ import annotations

from typing import Final

_OPERATIONS: Final = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/messages": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
"""Ends of the paths of the OpenAI and Anthropic APIs; the first that fits counts."""


def operation(path: str) -> str | None:
    """``gen_ai.operation.name`` of a POST to this path, None if it is no such route."""
    return next((name for end, name in _OPERATIONS.items() if path.endswith(end)), None)
