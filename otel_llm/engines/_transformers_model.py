"""What a model is called and what it is asked for. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

_MEDIA: Final = ("pixel_values", "input_features", "input_values", "image", "audio", "video")


def operation(main_input: str, given: Iterable[str], *, text: bool) -> str:
    """``gen_ai.operation.name`` of a call of ``generate``; ``text`` is whether the model writes nothing else."""
    plain = text and main_input == "input_ids" and not any(name.startswith(_MEDIA) for name in given)
    return "text_completion" if plain else "generate_content"


def model_name(model: Any) -> str:
    """What a model is called."""
    return name_of(model.config, type(model))


def name_of(config: Any, kind: type) -> str:
    """
    The last part of where the model came from, else its class: a folder's path stays private.

    In the hub's cache the last part is a commit; the name is further up.
    """
    return _last_part(str(getattr(config, "_name_or_path", None) or "")) or kind.__name__


@functools.lru_cache
def _last_part(path: str) -> str:
    parts = path.replace("\\", "/").rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1]
