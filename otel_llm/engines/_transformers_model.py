"""What a model is called and what it is asked for. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import functools
from typing import Any, Final

from otel_llm.patching import Call

_MEDIA: Final = ("pixel_values", "input_features", "input_values", "image", "audio", "video")


def operation(call: Call, *, text: bool) -> str:
    """``gen_ai.operation.name`` of a call of ``generate``; ``text`` is whether the model writes nothing else."""
    if not text or call.instance.main_input_name != "input_ids":
        return "generate_content"
    media = _media(tuple(call.kwargs))
    given = media and any(call.kwargs[name] is not None for name in media)
    return "generate_content" if given else "text_completion"


@functools.lru_cache
def _media(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.startswith(_MEDIA))


def writes_text(model: Any) -> bool:
    """Whether its output is text alone; old versions do not say and are taken to write text."""
    return getattr(model, "output_modalities", ("text",)) == ("text",)


def model_name(model: Any) -> str:
    """
    The last part of where the model came from, else its class: a folder's path stays private.

    In the hub's cache the last part is a commit; the name is further up.
    """
    return _last_part(str(setting(model.config, "_name_or_path") or "")) or type(model).__name__


def setting(config: Any, name: str) -> Any:
    """A field of a model's configuration, None without it, past the class's own lookup: that takes 1.4 µs each time."""
    try:
        return object.__getattribute__(config, name)
    except AttributeError:
        return getattr(config, name, None)


@functools.lru_cache
def _last_part(path: str) -> str:
    parts = path.replace("\\", "/").rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1]
