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
from otel_llm.engines._transformers_model import model_name, operation, writes_text
from otel_llm.engines._transformers_pipeline import scope
from otel_llm.engines._transformers_threads import carried, errand
from otel_llm.patching import Call, Look, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import AttributeValue, ending

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
    _asked: int | None = None
    _submitted: int | None = None

    def __init__(self, call: Call, probe: Probe, *, direct: bool = False) -> None:
        model = self.instance = call.instance
        self.stamps: list[int] = []
        """Of a custom loop, which has no decoding method."""
        self._loops: list[Loop] = []
        text = writes_text(model)
        self._counted = text and not direct
        """Whether a row of ids is a text: codes of sound have rows and lengths of other meaning."""
        self._custom = call.get("custom_generate") is not None
        self._inputs = call.get("inputs")
        if self._inputs is None:
            self._inputs = call.get("input_ids")
        self._probe = probe
        super().__init__(
            probe.emit,
            engine="transformers",
            operation=operation(call, text=text),
            model=model_name(model),
            request_id=None,
            context=probe.capture(carried=carried(call.get("streamer"))),
            swallow=probe.breaker.swallow,
        )
        self._scheduled = self.received
        if (here := errand.get()) is not None and (wait := here.waited()) is not None:
            self._submitted, self._scheduled = wait
        if (pipeline := scope.get()) is not None:
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
        if self.muted or (model is self.instance and not draft):
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
        timed = self._probe.device_timing and kind != "beam"
        device = _transformers_device.of(call.instance) if timed else None
        loop = self.loop = Loop(call, kind, self._inputs, device, self.swallow)
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
        """``generate`` has returned or raised: only now is anything counted, and the device asked."""
        now = time.monotonic_ns()
        outcome, reason = ending(error, accepted=bool(self._loops) or self._custom)
        if reason == "_GenerationCancelled":  # the client of `transformers serve` has gone
            outcome, reason = "abort", "cancelled"
        attributes: dict[str, AttributeValue] = {}
        if self.draft:
            attributes["otel_llm.engine.draft_time"] = self.draft / 1e9
        for loop in self._loops:
            try:
                loop.settle(counted=self._counted, failed_after=None if error is None else len(loop.ready))
            except Exception as fault:
                self.swallow("counts", fault)
            device, loop.device = loop.device, None
            if error is None and device is not None and len(self._loops) == 1 and not loop.deferred:
                attributes.update(device.attributes())
        self.instance = self._inputs = None
        self._finished = error is None
        self._known = {"attributes": attributes, "cut_known": self._finished or bool(self._loops) or not self._custom}
        known = {"received": self._asked, "submitted": self._submitted, "scheduled": self._scheduled, "ended": now}
        pipeline = scope.get()
        if error is None and pipeline is not None:
            pipeline.hold(self.close, known)
        else:
            self.close(outcome, reason, **known)

    def late(self) -> dict[str, Any]:
        """What the stamps and counts mean."""
        sample = partial(self.sample, submitted=self._submitted, scheduled=self._scheduled)
        return {**self._known, **marks(self._loops, self.stamps, sample, finished=self._finished)}
