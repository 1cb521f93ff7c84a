"""
Telemetry that versions 5.5 to 5.8 emit by themselves of continuous batching: a span per function and step.

Not an engine: files that start with ``_`` are none. It is silent while ours
measures the same. Upstream: transformers/utils/metrics.py, removed in 5.9.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from otel_llm.patching import Hook


class _Silent:
    """Stands for a tracer, its spans, and what they are asked to do."""

    def __getattr__(self, _name: str) -> _Silent:
        return self

    def __call__(self, *_: object, **__: object) -> _Silent:
        return self

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        """Let exceptions pass."""


_SILENT: Final = _Silent()
_RECORDERS: Final = (
    "record_ttft_metric",
    "record_batch_metrics",
    "record_kv_cache_memory_metrics",
    "record_queue_metrics",
    "record_request_completion",
)


def hooks(measured: Callable[[], bool]) -> tuple[Hook, ...]:
    """Silence it where ``measured()``; asked when a batch runs, because it is imported before all that is hooked."""

    def tracer(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def get_tracer(*args: Any, **kwargs: Any) -> Any:
            return _SILENT if measured() else original(*args, **kwargs)

        return get_tracer

    def recorder(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def record(*args: Any, **kwargs: Any) -> Any:
            return None if measured() else original(*args, **kwargs)

        return record

    module = "transformers.utils.metrics:"
    metrics = [f"{module}ContinuousBatchProcessorMetrics.{name}" for name in _RECORDERS]
    return (
        Hook((module + "get_tracer",), replacement=tracer, required=False),
        *(Hook((target,), replacement=recorder, required=False) for target in metrics),
    )
