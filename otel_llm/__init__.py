"""
OpenTelemetry for LLM serving: every millisecond of every request accounted for.

``instrument()`` is the one line. Importing this package costs next to nothing
and loads no engine, no torch and no exporter: each name is fetched from its
module on first use.
"""

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from otel_llm.decorators import measured as measured
    from otel_llm.decorators import request as request
    from otel_llm.health import EngineStatus as EngineStatus
    from otel_llm.health import Status as Status
    from otel_llm.instrumentation import add_sink as add_sink
    from otel_llm.instrumentation import instrument as instrument
    from otel_llm.instrumentation import status as status
    from otel_llm.instrumentation import uninstrument as uninstrument
    from otel_llm.timeline import Phase as Phase
    from otel_llm.timeline import Timeline as Timeline

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

_ROOMS = {
    "EngineStatus": "health",
    "Status": "health",
    "measured": "decorators",
    "request": "decorators",
    "Phase": "timeline",
    "Timeline": "timeline",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS.get(name, 'instrumentation')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
