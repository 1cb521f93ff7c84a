"""A call of ``generate`` in flight. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from otel_llm.engines import _transformers_device
from otel_llm.engines._transformers_counts import Kind
from otel_llm.engines._transformers_loop import Loop
from otel_llm.engines._transformers_marks import marks
from otel_llm.engines._transformers_model import about, name_of, operation
from otel_llm.engines._transformers_pipeline import scope
from otel_llm.engines._transformers_threads import carried, errand
from otel_llm.patching import Call, Look, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import ending

current: Final[ContextVar[Generation | None]] = ContextVar("otel_llm_transformers_generation", default=None)
"""The call of ``generate`` that runs in this thread."""

stamping: Final[ContextVar[Callable[[int], object] | None]] = ContextVar("otel_llm_transformers_stamps", default=None)
"""Takes the moment at which the loop that runs in this thread was done with a step."""


class Generation(Recording):
    """One call of ``generate``, whatever the number of rows: they start and return together."""

    loop: Loop | None = None
    """The decoding method that runs now."""
    muted = False
    """While another ``generate`` runs inside this one."""
    draft = 0
    """Nanoseconds in the ``generate`` of assistants."""
    engine = "transformers"
    _asked: int | None = None
    _submitted: int | None = None

    def __init__(self, call: Call, probe: Probe, *, direct: bool = False) -> None:
        self.stamps: list[int] = []
        """Of a custom loop, which has no decoding method."""
        self._loops: list[Loop] = []
        self._call: Any = call
        """Until it ends: whoever drops a model wants its memory back."""
        self._about, self._direct, self._timed = about(call.instance), direct, probe.device_timing
        here, pipeline = errand.get(), scope.get()
        context = probe.capture(carried=carried(call.get("streamer"), here))
        super().__init__(probe.emit, context, probe.breaker.swallow)
        self._scheduled = self.received
        if here is not None and (wait := here.waited()) is not None:
            self._submitted, self._scheduled = wait
        if pipeline is not None:
            self._asked = pipeline.take()
            if self._asked is not None and self._submitted is None:
                self._submitted = self._scheduled  # what came before was the pipeline's own work

    def entered(self) -> Look:
        """``generate`` begins; return what to do when it has ended."""
        tokens = current.set(self), stamping.set(self.stamps.append)

        def left(call: Call) -> None:
            current.reset(tokens[0])
            stamping.reset(tokens[1])
            self.ended(call.error)

        return left

    def nested(self, model: Any) -> Look | None:
        """Another ``generate`` begins inside this one: of an assistant, or the same on its way to a custom loop."""
        draft = self.loop is not None
        if self.muted or (model is self._call.instance and not draft):
            return None
        self.muted, begin, token = True, time.monotonic_ns(), stamping.set(None)

        def left(_call: Call) -> None:
            self.muted = False
            stamping.reset(token)
            if draft:
                self.draft += time.monotonic_ns() - begin

        return left

    def decoding(self, call: Call, kind: Kind, beyond: Look | None = None) -> Look:
        """A decoding method begins; return what to do when it has ended, ``beyond`` last."""
        # A beam search launches more after the last moment at which it is seen.
        device = _transformers_device.of(call.instance) if self._timed and kind != "beam" else None
        loop = self.loop = Loop(call, kind, self._call, device, self.swallow)
        self._loops.append(loop)
        token = stamping.set(loop.stamp)

        def left(call: Call) -> None:
            stamping.reset(token)
            self.loop = None
            if call.error is None:
                loop.end(call.value)
            if beyond is not None:
                beyond(call)

        return left

    def ended(self, error: BaseException | None) -> None:
        """``generate`` has returned or raised: only now is the device asked for anything."""
        now, call, self._call = time.monotonic_ns(), self._call, None
        self._given = [name for name, value in call.kwargs.items() if value is not None]
        self._finished, text = error is None, self._about[2] == ("text",)
        # A row of ids is a text, or unknown: codes of sound have rows and lengths of other meaning.
        self._counted = text and not self._direct
        for loop in self._loops:
            try:
                loop.settle(failed=not self._finished, counted=self._counted)
            except Exception as fault:
                self.swallow("counts", fault)
        if self._finished and (pipeline := scope.get()) is not None:
            pipeline.hold(self, now)
        else:
            self.over(error, now)

    def over(self, error: BaseException | None, now: int) -> None:
        """The call has come to its end, and the pipeline around it, if there is one."""
        if error is None:
            self.close("ok", None, ended=now)
            return
        begun = self._finished or bool(self._loops) or "custom_generate" in self._given
        outcome, reason = ending(error, accepted=begun)
        if reason == "_GenerationCancelled":  # the client of `transformers serve` has gone
            outcome, reason = "abort", "cancelled"
        self.close(outcome, reason, ended=now)

    def late(self) -> dict[str, Any]:
        """What the stamps and counts mean."""
        config, kind, modalities, main_input = self._about
        self.model = name_of(config, kind)
        self.operation = operation(main_input, self._given, text=modalities == ("text",))
        custom = "custom_generate" in self._given
        known: dict[str, Any] = {"submitted": self._submitted, "scheduled": self._scheduled}
        found = marks(self._loops, self.stamps, partial(self.sample, **known), self._counted, finished=self._finished)
        if self.draft:
            found["attributes"] = {"otel_llm.engine.draft_time": self.draft / 1e9, **found["attributes"]}
        cut_known = self._finished or bool(self._loops) or not custom
        return {"received": self._asked, **known, "cut_known": cut_known, **found}
