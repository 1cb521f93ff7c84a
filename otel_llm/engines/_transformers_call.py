"""A call of ``generate`` in flight. Not an engine: files that start with ``_`` are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import Token
from functools import partial
from itertools import compress
from operator import is_not
from typing import Any, Final

from otel_llm.engines import _transformers_device
from otel_llm.engines import _transformers_here as here
from otel_llm.engines._transformers_counts import Kind
from otel_llm.engines._transformers_loop import Loop
from otel_llm.engines._transformers_marks import marks
from otel_llm.engines._transformers_model import name_of, operation
from otel_llm.engines._transformers_threads import carried
from otel_llm.patching import Leave, Probe
from otel_llm.recording import Recording
from otel_llm.timeline import ending

_TEXT: Final = ("text",)
_IS_GIVEN: Final = partial(is_not, None)


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
    _scheduled: int | None = None
    """Where that is not when it was received."""

    def __init__(self, model: Any, given: Mapping[str, Any], probe: Probe, *, direct: bool = False) -> None:
        """``given`` are the arguments by name; ``direct`` is whether there is a decoding method and no ``generate``."""
        self.stamps: list[int] = []
        """Of a custom loop, which has no decoding method."""
        self.stamp: Callable[[int], object] | None = self.stamps.append
        """Takes the moment at which the loop was done with a step."""
        self._loops: list[Loop] = []
        self._model, self._arguments = model, given
        """Until it ends: whoever drops a model wants its memory back."""
        self._config, self._kind, self._main_input = model.config, type(model), model.main_input_name
        # Old versions do not say what they put out, and are taken to write text.
        self._text = getattr(model, "output_modalities", _TEXT) == _TEXT
        self._direct, self._timed = direct, probe.device_timing
        self.token: Token[Generation | None]
        """Of ``here.generation``."""
        errand, streamer, pipeline = here.errand.get(), given.get("streamer"), here.pipeline.get()
        plain = errand is None and streamer is None
        context = probe.capture() if plain else probe.capture(carried=carried(streamer, errand))
        super().__init__(probe.emit, context, probe.breaker.swallow)
        if errand is not None and (wait := errand.waited()) is not None:
            self._submitted, self._scheduled = wait
        if pipeline is not None:
            if pipeline.held is not None:  # it generates again: what it held was over
                pipeline.release()
            self._asked, pipeline.began = pipeline.began, None
            if self._asked is not None and self._submitted is None:
                self._submitted = self.received  # what came before was the pipeline's own work

    def nested(self, model: Any) -> Leave | None:
        """Another ``generate`` begins inside this one: of an assistant, or the same on its way to a custom loop."""
        draft = self.loop is not None
        if self.muted or (model is self._model and not draft):
            return None
        self.muted, begin, stamp, self.stamp = True, time.monotonic_ns(), self.stamp, None

        def left(_value: object, _error: object) -> None:
            self.muted, self.stamp = False, stamp
            if draft:
                self.draft += time.monotonic_ns() - begin

        return left

    def decoding(self, model: Any, given: Mapping[str, Any], kind: Kind, kwargs: dict[str, Any]) -> Leave:
        """A decoding method begins; return what to tell of its end."""
        # A beam search launches more after the last moment at which it is seen.
        device = _transformers_device.of(model) if self._timed and kind != "beam" else None
        loop = Loop(model, given, kind, self._arguments)
        loop.outside = self.stamp
        if device is not None:
            loop.device, loop.settled = device, False
        self.stamp = loop.stamps.append if loop.settled else loop.entered(kwargs, self.swallow)
        self.loop = loop
        self._loops.append(loop)
        return loop.left

    def left(self, _value: object, error: BaseException | None) -> None:
        """``generate`` has returned or raised: only now is the device asked for anything."""
        here.generation.reset(self.token)
        del self.token  # it holds whatever the context holds
        now, given = time.monotonic_ns(), self._arguments
        self._model, self._arguments = None, {}
        self._given = [*compress(given, map(_IS_GIVEN, given.values()))]
        # A row of ids is a text, or unknown: codes of sound have rows and lengths of other meaning.
        self._finished, self._counted = error is None, self._text and not self._direct
        for loop in self._loops:
            if not loop.settled:
                try:
                    loop.settle(failed=not self._finished, counted=self._counted)
                except Exception as fault:
                    self.swallow("counts", fault)
        if self._finished and (pipeline := here.pipeline.get()) is not None:
            pipeline.held = self, now
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
        self.model = name_of(self._config, self._kind)
        self.operation = operation(self._main_input, self._given, text=self._text)
        custom = "custom_generate" in self._given
        known: dict[str, Any] = {"submitted": self._submitted, "scheduled": self._scheduled or self.received}
        found = marks(self._loops, self.stamps, partial(self.sample, **known), self._counted, finished=self._finished)
        if self.draft:
            found["attributes"] = {"otel_llm.engine.draft_time": self.draft / 1e9, **found["attributes"]}
        cut_known = self._finished or bool(self._loops) or not custom
        return {"received": self._asked, **known, "cut_known": cut_known, **found}
