"""
OpenTelemetry for LLM serving: every millisecond of every request accounted for.

``instrument()`` is the one line. Importing this package imports no engine, no
torch and no exporter.
"""

from otel_llm.decorators import measured, request
from otel_llm.instrumentation import EngineStatus, Status, add_sink, instrument, status, uninstrument
from otel_llm.timeline import Phase, Timeline

__all__ = [
    "EngineStatus",
    "Phase",
    "Status",
    "Timeline",
    "add_sink",
    "instrument",
    "measured",
    "request",
    "status",
    "uninstrument",
]
