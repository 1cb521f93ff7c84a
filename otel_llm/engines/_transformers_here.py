"""What runs in this thread. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from otel_llm.engines._transformers_call import Generation
    from otel_llm.engines._transformers_pipeline import Scope
    from otel_llm.engines._transformers_threads import Errand

generation: Final[ContextVar[Generation | None]] = ContextVar("otel_llm_transformers_generation", default=None)
"""The call of ``generate``."""

pipeline: Final[ContextVar[Scope | None]] = ContextVar("otel_llm_transformers_pipeline", default=None)
"""The pipeline call, the outermost one."""

errand: Final[ContextVar[Errand | None]] = ContextVar("otel_llm_transformers_errand", default=None)
"""What another thread handed over to this one."""
