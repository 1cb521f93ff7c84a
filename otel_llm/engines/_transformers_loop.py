"""One run of a decoding method, step by step. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from otel_llm.engines import _transformers_here as here
from otel_llm.engines._transformers_counts import Counting
from otel_llm.engines._transformers_criteria import Swallow, heard
from otel_llm.engines._transformers_device import Device


class Loop(Counting):
    """What ``_sample``, ``_beam_search`` or ``_assisted_decoding`` was given and did."""

    deferred = False
    """Whether the result of a step reaches the host one step later."""
    device: Device | None = None
    """It is asked for its time, if it is there."""
    outside: Callable[[int], object] | None = None
    """Takes the stamps again when this has ended."""
    _over = 0
    waits: Mapping[str, float] = MappingProxyType({})
    """What the device said of its time."""

    def entered(self, kwargs: dict[str, Any], swallow: Swallow) -> Callable[[int], object]:
        """A decoding method begins that is not ``settled``, with these arguments; return what takes its stamps."""
        if (self.done is not None or self.device is not None) and "stopping_criteria" in kwargs:
            kwargs["stopping_criteria"] = heard(kwargs["stopping_criteria"], self._judged, swallow)
        return self.stamps.append if self.device is None else self._synchronised

    def left(self, value: Any, error: BaseException | None) -> None:
        """The decoding method has returned or raised."""
        if (generation := here.generation.get()) is not None:
            generation.loop, generation.stamp = None, self.outside
        if error is None:
            self._over = time.monotonic_ns()
            sequences = getattr(value, "sequences", value)
            if getattr(sequences, "ndim", 0) == 2:
                self._returned = sequences.shape
                self._sequences = None if self._even_rows else sequences

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
