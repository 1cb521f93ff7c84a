"""
One run of a decoding method: when its steps were done, and how many tokens came of it.

Not an engine: files that start with ``_`` are none. Tensors are touched after
the loop only, and at most once: one reduction and one copy to the host, where
a batch was padded or its rows may differ in length.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Literal, NamedTuple

from otel_llm.engines._transformers_model import setting
from otel_llm.patching import Call

Kind = Literal["sample", "beam", "assisted"]
"""One token per row and step; hypotheses that are final only at the end; one or more tokens per step."""

_KNOWN_CRITERIA: Final = frozenset({"EosTokenCriteria", "MaxLengthCriteria", "MaxTimeCriteria"})


class Counts(NamedTuple):
    """Tokens, where they are known."""

    prompts: list[int] | None = None
    """Tokens of each prompt, padding left out."""
    rows: list[int] | None = None
    """Tokens generated for each returned row, up to and including its end token."""


class Loop:
    """What ``_sample``, ``_beam_search`` or ``_assisted_decoding`` was given and did."""

    def __init__(self, call: Call, kind: Kind, given: int | None) -> None:
        config, embeddings, mask = call.get("generation_config"), call.get("inputs_embeds"), call.get("attention_mask")
        self.kind = kind
        self.stamps: list[int] = []
        """Monotonic nanoseconds: before the first step, then after each."""
        self.deferred = False
        """Whether the result of a step reaches the host one step later."""
        self.returned = 0
        self.sequences: Any = None
        self.criteria = call.get("stopping_criteria")
        self.limit: int | None = config.max_length
        self._rows, self._start = call.get("input_ids").shape
        self._prompts = self._rows // max(config.num_beams or 1, config.num_return_sequences or 1)
        if setting(call.instance.config, "is_encoder_decoder"):
            # Only a text encoder's input is counted in tokens.
            text = call.instance.main_input_name == "input_ids"
            self._width, mask = given, mask if text else None
        else:
            self._width = self._start if embeddings is None else embeddings.shape[1]
        self._mask = mask if mask is not None and mask.dim() == 2 else None
        ends, names = [], set()
        for criterion in self.criteria:
            names.add(type(criterion).__name__)
            if hasattr(criterion, "eos_token_id"):
                ends.append(criterion)
        self._ends: Any = ends[0].eos_token_id if ends else None
        self._plain = names <= _KNOWN_CRITERIA and len(ends) < 2
        self._timed = "MaxTimeCriteria" in names
        uneven = kind == "sample" and self._rows > 1 and bool(ends) and not self._plain
        self.done: list[Any] | None = [] if uneven else None
        """What the stopping criteria said after each step; kept only where an end token does not tell the length."""

    def release(self) -> None:
        """Let go of what may hold memory of the device; only ``counts`` and ``cut`` need it."""
        self.sequences = self.criteria = self.done = self._mask = self._ends = None

    def end(self, value: Any, now: int) -> None:
        """The decoding method has returned."""
        sequences = getattr(value, "sequences", value)
        if getattr(sequences, "ndim", 0) == 2:
            self.sequences = sequences
        self.returned = now

    @property
    def ready(self) -> list[int]:
        """When the result of each step was on the host; the first is that of the first token."""
        if not self.deferred:
            return self.stamps[1:]
        return self.stamps[2:] + ([self.returned] if self.returned else [])

    def last(self, length: int | None = None) -> int:
        """When the last token of a row of this length was on the host."""
        ready = self.ready
        return ready[-1] if length is None or self.kind != "sample" else ready[min(length, len(ready)) - 1]

    def cut(self) -> Counts:
        """What is known of a run that raised without asking the device, which may be what failed."""
        prompts = None if self._width is None or self._mask is not None else [self._width] * self._prompts
        stepwise = self.kind == "sample" and self._rows == 1
        return Counts(prompts, [len(self.ready)] if stepwise else None)

    def finish_reasons(self, lengths: list[int]) -> tuple[str, ...]:
        """For each row: did it reach the limit, or an end? Unknown if the clock may have ended it."""
        if self.limit is None:
            return ()
        ends = [self._start + length >= self.limit for length in lengths]
        return () if self._timed and not all(ends) else tuple("length" if end else "stop" for end in ends)

    def counts(self) -> Counts:
        """Exact, or None. Waits for the device only if a row was padded or may have ended early."""
        prompts: Any = None if self._width is None else [self._width] * self._prompts
        if self._mask is not None:
            each = self._rows // self._prompts
            prompts = (self._mask if each == 1 else self._mask[::each]).count_nonzero(1)
        lengths = None if self.sequences is None else self._lengths(self.sequences)
        tensors = [part for part in (prompts, lengths) if part is not None and not isinstance(part, list)]
        if tensors:
            device = tensors[-1].device
            whole = tensors[0] if len(tensors) == 1 else sys.modules["torch"].cat([part.to(device) for part in tensors])
            flat = whole.tolist()
            if not isinstance(prompts, list) and prompts is not None:
                prompts, flat = flat[: len(prompts)], flat[len(prompts) :]
            lengths = lengths if lengths is None or isinstance(lengths, list) else flat
        return Counts(prompts, lengths)

    def _lengths(self, sequences: Any) -> Any:
        """Length of each row: a list, or a tensor where the tokens must be looked at, or None."""
        rows, width = sequences.shape[0], sequences.shape[1] - self._start
        if rows == 1 or not width:
            return [width] * rows
        if self._ends is None and (self._plain or self.kind == "sample"):
            return [width] * rows  # without an end token rows are never padded
        if self._plain and self._ends is not None:
            new = sequences[:, self._start :]
            hit = (new.unsqueeze(-1) == self._ends.to(new.device)).any(-1)
            return (hit.int().argmax(1) + 1).masked_fill(~hit.any(1), width)
        if self.done:
            running = sys.modules["torch"].stack(self.done).int().cummax(0).values == 0
            return (running.sum(0) + 1).clamp(max=width).to(sequences.device)
        return None
