"""One run of a decoding method, step by step. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from otel_llm.engines._transformers_counts import Counting, Kind
from otel_llm.engines._transformers_criteria import Swallow, heard
from otel_llm.engines._transformers_device import Device
from otel_llm.patching import Call


class Loop(Counting):
    """What ``_sample``, ``_beam_search`` or ``_assisted_decoding`` was given and did."""

    deferred = False
    """Whether the result of a step reaches the host one step later."""
    _over = 0
    waits: Mapping[str, float] = MappingProxyType({})
    """What the device said of its time."""

    def __init__(self, call: Call, kind: Kind, generate: Call, device: Device | None, swallow: Swallow) -> None:
        """``generate`` is the call that it is part of; ``device`` is asked for its time, if it is there."""
        super().__init__(call, kind, generate)
        self.stamps: list[int] = []
        """Monotonic nanoseconds: before the first step, then after each."""
        self.device, self.stamp = device, self.stamps.append if device is None else self._synchronised
        if self.done is not None or device is not None:
            call.replace("stopping_criteria", heard(call.get("stopping_criteria"), self._judged, swallow))

    def _judged(self, done: Any) -> None:
        """The stopping criteria have looked at the tokens of a step: the last work of it."""
        if self.done is not None:
            self.done.append(done)
        if self.device is not None:
            self.device.launched()

    def _synchronised(self, at: int) -> None:
        self.stamps.append(at)
        if self.device is not None:
            self.device.synchronised(at)

    def end(self, value: Any) -> None:
        """The decoding method has returned."""
        self._over = time.monotonic_ns()
        self.came(value)

    def settle(self, *, failed: bool, counted: bool) -> None:
        """``generate`` is over: ask the device what only it knows, unless it may be what failed, and let go of it."""
        device, self.device = self.device, None
        try:
            if counted and not failed:
                self.ask()
            if device is not None and not failed and not self.deferred:
                self.waits = device.attributes()
        finally:
            self.release()

    @property
    def ready(self) -> list[int]:
        """When the result of each step was on the host; the first is that of the first token."""
        if not self.deferred:
            return self.stamps[1:]
        return self.stamps[2:] + ([self._over] if self._over else [])

    def last(self, length: int | None = None) -> int:
        """When the last token of a row of this length was on the host."""
        ready = self.ready
        return ready[-1] if length is None or self.kind != "sample" else ready[min(length, len(ready)) - 1]

    def finish_reasons(self, lengths: list[int]) -> tuple[str, ...]:
        """For each row: did it reach the limit, or an end? Unknown if the clock may have ended it."""
        if self.limit is None:
            return ()
        ends = [self.start + length >= self.limit for length in lengths]
        timed = any(kind.__name__ == "MaxTimeCriteria" for kind in self.criteria)
        return () if timed and not all(ends) else tuple("length" if end else "stop" for end in ends)
