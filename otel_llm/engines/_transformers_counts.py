"""
How many tokens came of a loop. Not an engine: files that start with ``_`` are none.

Tensors are touched after the loop only, and at most once: one reduction and
one copy to the host, where a batch was padded or its rows may differ in length.
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


class Counting:
    """What a loop was given that tells the number of tokens, and what it returned."""

    counts = Counts()
    """Known when ``generate`` is over."""
    done: list[Any] | None = None
    """What the stopping criteria said after each step; kept only where an end token does not tell the length."""
    _sequences: Any = None
    _ends: Any = None
    _plain = False
    """Whether an end token is all that tells how long one of several rows is."""

    def __init__(self, call: Call, kind: Kind, given: Any) -> None:
        """``given`` is the input of ``generate``."""
        config, embeddings, mask = call.get("generation_config"), call.get("inputs_embeds"), call.get("attention_mask")
        self.kind = kind
        self.limit: int | None = config.max_length
        self._rows, self.start = call.get("input_ids").shape
        self._prompts = self._rows // max(config.num_beams or 1, config.num_return_sequences or 1)
        if setting(call.instance.config, "is_encoder_decoder"):
            # Only a text encoder's input is counted in tokens.
            text = call.instance.main_input_name == "input_ids"
            self._width = given.shape[1] if getattr(given, "ndim", 0) == 2 else None
            mask = mask if text else None
        else:
            self._width = self.start if embeddings is None else embeddings.shape[1]
        self._mask = mask if mask is not None and mask.dim() == 2 else None
        criteria = call.get("stopping_criteria")
        self.kinds = tuple(map(type, criteria))
        if self._rows > 1:
            self._tell_rows_apart(criteria)

    def _tell_rows_apart(self, criteria: Any) -> None:
        ends = [criterion.eos_token_id for criterion in criteria if hasattr(criterion, "eos_token_id")]
        self._ends = ends[0] if ends else None
        self._plain = {kind.__name__ for kind in self.kinds} <= _KNOWN_CRITERIA and len(ends) < 2
        if self.kind == "sample" and ends and not self._plain:
            self.done = []

    def came(self, value: Any) -> None:
        """The loop has returned this."""
        sequences = getattr(value, "sequences", value)
        if getattr(sequences, "ndim", 0) == 2:
            self._sequences = sequences

    def settle(self, *, counted: bool, failed_after: int | None) -> None:
        """
        Count, and let go of what may hold memory of the device.

        A loop that raised is said to have failed after so many steps: the
        device, which may be what failed, is not asked.
        """
        try:
            if counted:
                self.counts = self._exact() if failed_after is None else self._cut(failed_after)
        finally:
            self._sequences = self._mask = self._ends = self.done = None

    def _cut(self, steps: int) -> Counts:
        """What is known of a run that raised."""
        prompts = None if self._width is None or self._mask is not None else [self._width] * self._prompts
        stepwise = self.kind == "sample" and self._rows == 1
        return Counts(prompts, [steps] if stepwise else None)

    def _exact(self) -> Counts:
        """Exact, or None. Waits for the device only if a row was padded or may have ended early."""
        lengths: Any = None if self._sequences is None else self._lengths(self._sequences)
        uneven = hasattr(lengths, "tolist")
        if self._mask is None:
            prompts = None if self._width is None else [self._width] * self._prompts
            return Counts(prompts, lengths.tolist() if uneven else lengths)
        each = self._rows // self._prompts
        masked = (self._mask if each == 1 else self._mask[::each]).count_nonzero(1)
        if not uneven:
            return Counts(masked.tolist(), lengths)
        both = sys.modules["torch"].cat([masked.to(lengths.device), lengths]).tolist()
        return Counts(both[: self._prompts], both[self._prompts :])

    def _lengths(self, sequences: Any) -> Any:
        """Length of each row: a list, or a tensor where the tokens must be looked at, or None."""
        rows, width = sequences.shape[0], sequences.shape[1] - self.start
        if rows == 1 or not width:
            return [width] * rows
        if self._ends is None and (self._plain or self.kind == "sample"):
            return [width] * rows  # without an end token rows are never padded
        if self._plain and self._ends is not None:
            new = sequences[:, self.start :]
            hit = (new.unsqueeze(-1) == self._ends.to(new.device)).any(-1)
            return (hit.int().argmax(1) + 1).masked_fill(~hit.any(1), width)
        if self.done:
            running = sys.modules["torch"].stack(self.done).int().cummax(0).values == 0
            return (running.sum(0) + 1).clamp(max=width).to(sequences.device)
        return None
