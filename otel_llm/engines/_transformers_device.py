"""
Whether the host or the device was the slower one, by the device's own events. Not an engine: ``_`` files are none.

Off unless ``OTEL_LLM_DEVICE_TIMING`` asks for it. A step ends with the host
waiting for the device. One event is recorded when all of the step has been
launched, another when the wait is over: what lies between the two on the device
was idle, the rest of the wait was the device's work. Events are read after the
loop by the thread that generates, never waited for, and never inside a graph.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Final

READ_EVERY: Final = 256
"""Steps after which events are read and let go: a long call holds no more than these."""


class Device:
    """One run of a decoding method, seen from the device."""

    def __init__(self, event: Callable[[], Any]) -> None:
        self._event = event
        self._launched: tuple[Any, int] | None = None
        self._steps: list[tuple[Any, Any, int]] = []
        self._waits: list[int] = []
        """Nanoseconds: in the first step, then in all others."""
        self._known = True

    def launched(self) -> None:
        """All of a step has been handed to the device."""
        event = self._event()
        event.record()
        self._launched = event, time.monotonic_ns()

    def synchronised(self, now: int) -> None:
        """The host has the result of that step, since ``now``."""
        if self._launched is None:
            return
        event = self._event()
        event.record()
        (launched, at), self._launched = self._launched, None
        self._steps.append((launched, event, now - at))
        if len(self._steps) > READ_EVERY:
            last = self._steps.pop()  # the only one that may not have happened yet
            self._read()
            self._steps.append(last)

    def attributes(self) -> dict[str, float]:
        """Seconds that the host waited for the device, by phase; nothing if that is not known of all steps."""
        self._read()
        names = ("otel_llm.device.wait.prefill", "otel_llm.device.wait.decode")
        return {name: wait / 1e9 for name, wait in zip(names, self._waits, strict=False)} if self._known else {}

    def _read(self) -> None:
        for launched, event, waited in self._steps:
            if not event.query():  # work of others on the same stream
                self._known = False
                break
            busy = max(0, waited - round(launched.elapsed_time(event) * 1e6))
            if len(self._waits) < 2:
                self._waits.append(busy)
            else:
                self._waits[1] += busy
        self._steps.clear()


def of(model: Any) -> Device | None:
    """The device of a model, if it has events that tell time: CUDA, ROCm, XPU, MPS."""
    event = _events(model.device)
    return None if event is None else Device(event)


@functools.cache
def _events(device: Any) -> Callable[[], Any] | None:
    try:
        event = functools.partial(sys.modules["torch"].Event, device=device, enable_timing=True)
        event().record()
    except Exception:  # a device without events, or a torch without a common name for them
        return None
    return event
