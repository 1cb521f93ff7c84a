"""A call of ``generate`` in flight. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from otel_llm.engines import _transformers_device
from otel_llm.engines._transformers_loop import Counts, Kind, Loop
from otel_llm.engines._transformers_model import model_name, operation, writes_text
from otel_llm.engines._transformers_pipeline import scope
from otel_llm.engines._transformers_threads import carried, errand
from otel_llm.patching import Call, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import Timeline, ending

current: Final[ContextVar[Generation | None]] = ContextVar("otel_llm_transformers_generation", default=None)
"""The call of ``generate`` that runs in this thread."""


class Generation(Recording):
    """One call of ``generate``, whatever the number of rows: they start and return together."""

    def __init__(self, call: Call, probe: Probe, *, direct: bool = False) -> None:
        self.model: Any = call.instance
        """Until it ends: whoever drops a model wants its memory back."""
        self.loop: Loop | None = None
        """The decoding method that runs now."""
        self.stamps: list[int] = []
        """Of the running or last loop; of a custom one that has no decoding method."""
        self.muted = False
        """While another ``generate`` runs inside this one."""
        self.device: _transformers_device.Device | None = None
        """Of the running or last loop, where device timing is on."""
        self.draft = 0
        """Nanoseconds in the ``generate`` of assistants."""
        inputs = call.get("inputs")
        given = call.get("input_ids") if inputs is None else inputs
        self._given = given.shape[1] if getattr(given, "ndim", 0) == 2 else None
        text = writes_text(call.instance)
        self._counted = text and not direct
        """Whether a row of ids is a text: codes of sound have rows and lengths of other meaning."""
        self._custom = call.get("custom_generate") is not None
        self._loops: list[Loop] = []
        self._breaker, self._device_timing = probe.breaker, probe.device_timing
        super().__init__(
            probe.emit,
            engine="transformers",
            operation=operation(call, text=text),
            model=model_name(call.instance),
            request_id=None,
            context=probe.capture(carried=carried(call.get("streamer"))),
            swallow=probe.breaker.swallow,
        )
        here, pipeline = errand.get(), scope.get()
        wait: tuple[int | None, int] = (here.waited() if here else None) or (None, self.received)
        self._submitted, self._scheduled = wait
        self._asked = None if pipeline is None else pipeline.take()
        if self._asked is not None and self._submitted is None:
            self._submitted = self._scheduled  # what came before was the pipeline's own work

    def enter(self, call: Call, kind: Kind) -> Loop:
        """A decoding method begins."""
        loop = Loop(call, kind, self._given)
        self._loops.append(loop)
        self.loop, self.stamps = loop, loop.stamps
        # A beam search launches more after the last moment at which it is seen.
        self.device = _transformers_device.of(call.instance) if self._device_timing and kind != "beam" else None
        return loop

    def ended(self, error: BaseException | None) -> None:
        """``generate`` has returned or raised: only now is anything counted, and the device asked."""
        now = time.monotonic_ns()
        outcome, reason = ending(error, accepted=bool(self._loops) or self._custom)
        if reason == "_GenerationCancelled":  # the client of `transformers serve` has gone
            outcome, reason = "abort", "cancelled"
        counts = []
        for loop in self._loops:
            counts.append(self._counts(loop) if error is None else loop.cut())
            loop.release()
        device = {}
        if error is None and self.device is not None and len(self._loops) == 1 and not self._loops[0].deferred:
            device = self.device.attributes()
        self.model = self.device = None
        late = partial(self._finished if error is None else self._cut, counts, device)
        marks = {"received": self._asked, "submitted": self._submitted, "scheduled": self._scheduled, "ended": now}
        pipeline = scope.get()
        if error is None and pipeline is not None:
            pipeline.hold(partial(self.close, late=late), marks)
        else:
            self.close(outcome, reason, late, **marks)

    def _finished(self, counts: list[Counts], device: dict[str, float]) -> dict[str, Any]:
        loops, marks = self._loops, self._seen(counts, device)
        if "first_token" not in marks:
            return marks
        marks["last_token"] = loops[-1].last() if loops else self.stamps[-1]
        rows = counts[0].rows if len(loops) == 1 else None
        if rows:
            marks["last_token"] = max(loops[0].last(length) for length in rows)
            marks["finish_reasons"] = loops[0].finish_reasons(rows)
            if len(rows) > 1:
                marks["samples"] = self._samples(loops[0], counts[0].prompts, rows)
        return marks

    def _cut(self, counts: list[Counts], device: dict[str, float]) -> dict[str, Any]:
        return {**self._seen(counts, device), "cut_known": bool(self._loops) or not self._custom}

    def _seen(self, counts: list[Counts], device: dict[str, float]) -> dict[str, Any]:
        """What calls that returned and calls that raised have in common."""
        marks: dict[str, Any] = {}
        ready = self._loops[0].ready if self._loops else self.stamps[1:]
        if ready:
            marks["first_token"] = ready[0]
        if self.draft:
            device = {"otel_llm.engine.draft_time": self.draft / 1e9, **device}
        if device:
            marks["attributes"] = device
        if counts and counts[0].prompts is not None:
            marks["prompt_tokens"] = sum(counts[0].prompts)
        known = [sum(count.rows) for count in counts if count.rows is not None]
        if counts and len(known) == len(counts):
            marks["output_tokens"] = sum(known)
        return marks

    def _counts(self, loop: Loop) -> Counts:
        try:
            return loop.counts() if self._counted else Counts()
        except Exception as error:
            self._breaker.swallow("counts", error)
            return Counts()

    def _samples(self, loop: Loop, prompts: list[int] | None, rows: list[int]) -> list[Timeline]:
        """One per row. A row ends with its last token; what it waits for the others belongs to the call."""
        reasons = loop.finish_reasons(rows)
        return [
            self.sample(
                ended=loop.last(length),
                submitted=self._submitted,
                scheduled=self._scheduled,
                first_token=loop.ready[0],
                last_token=loop.last(length),
                prompt_tokens=prompts[index * len(prompts) // len(rows)] if prompts else None,
                output_tokens=length,
                finish_reasons=reasons[index : index + 1],
            )
            for index, length in enumerate(rows)
        ]
