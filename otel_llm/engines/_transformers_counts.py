"""
How many tokens came of a loop. Not an engine: files that start with ``_`` are none.

Tensors are touched after the loop only, and at most once: one reduction and
one copy to the host, where a batch was padded or its rows may differ in length.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

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

    done: list[Any] | None = None
    """What the stopping criteria said after each step; kept only where an end token does not tell the length."""
    _prompts = 1
    _returned: tuple[int, int] | None = None
    """Rows and columns of what the loop returned."""
    _sequences: Any = None
    _ends: Any = None
    _even_rows = True
    """Whether all rows are as long as the longest: one row is, and without an end token rows are never padded."""
    _plain = False
    """Whether an end token is all that tells how long one of several rows is."""
    _said: Counts | None = None
    """What the device said, where it had to be asked."""

    def __init__(self, model: Any, given: Mapping[str, Any], kind: Kind, asked: Mapping[str, Any]) -> None:
        """``given`` are the loop's arguments by name, ``asked`` those of the ``generate`` that it is part of."""
        config, criteria = given["generation_config"], given["stopping_criteria"]
        mask = given.get("attention_mask")
        self.kind = kind
        self.limit: int | None = config.max_length
        self._rows, self.start = given["input_ids"].shape
        self._width: int | None = self.start
        self.criteria: list[type] = [*map(type, criteria)]
        if given.get("encoder_outputs") is not None:
            # Only a text encoder's input is counted in tokens.
            inputs: Any = asked.get("inputs")
            inputs = asked.get("input_ids") if inputs is None else inputs
            self._width = inputs.shape[1] if getattr(inputs, "ndim", 0) == 2 else None
            mask = mask if model.main_input_name == "input_ids" else None
        elif (embeddings := given.get("inputs_embeds")) is not None:
            self._width = embeddings.shape[1]
        self._mask = mask if mask is not None and mask.dim() == 2 else None
        self._masked = self._mask is not None
        self.settled = self._rows == 1 and not self._masked
        """Whether there is nothing to ask the device for, and nothing of it to let go of: steps alone are stamped."""
        self.stamps: list[int] = []
        """Monotonic nanoseconds: before the first step, then after each."""
        if self._rows > 1:
            self._prompts = self._rows // max(config.num_beams or 1, config.num_return_sequences or 1)
            self._tell_rows_apart(criteria)

    def _tell_rows_apart(self, criteria: Any) -> None:
        ends = [criterion.eos_token_id for criterion in criteria if hasattr(criterion, "eos_token_id")]
        self._ends = ends[0] if ends else None
        self._plain = {kind.__name__ for kind in self.criteria} <= _KNOWN_CRITERIA and len(ends) < 2
        self._even_rows = not ends and (self._plain or self.kind == "sample")
        if self.kind == "sample" and ends and not self._plain:
            self.done = []

    def ask(self) -> None:
        """Ask the device for what only it knows, if there is anything: one copy to the host."""
        lengths: Any = None
        if self._sequences is not None and self._even() is None:
            lengths = self._uneven(self._sequences)
        if self._mask is None:
            if lengths is not None:
                self._said = Counts(self._unpadded(), lengths.tolist())
            return
        each = self._rows // self._prompts
        masked = (self._mask if each == 1 else self._mask[::each]).count_nonzero(1)
        if lengths is None:
            self._said = Counts(masked.tolist(), self._even())
        else:
            both = sys.modules["torch"].cat([masked.to(lengths.device), lengths]).tolist()
            self._said = Counts(both[: self._prompts], both[self._prompts :])

    def release(self) -> None:
        """Let go of what may hold memory of the device."""
        self._sequences = self._mask = self._ends = self.done = None

    def counts(self, failed_after: int | None = None) -> Counts:
        """Exact, or None; of a run that raised after so many steps, what is known without the device."""
        if failed_after is None:
            return self._said or Counts(self._unpadded(), self._even())
        stepwise = self.kind == "sample" and self._rows == 1
        return Counts(self._unpadded(), [failed_after] if stepwise else None)

    def _unpadded(self) -> list[int] | None:
        return None if self._width is None or self._masked else [self._width] * self._prompts

    def _even(self) -> list[int] | None:
        """Length of each row, where no token has to be looked at."""
        if self._returned is None:
            return None
        rows, width = self._returned[0], self._returned[1] - self.start
        return [width] * rows if rows == 1 or not width or self._even_rows else None

    def _uneven(self, sequences: Any) -> Any:
        """Length of each row, up to its end: a tensor, or None where nothing tells."""
        if self._plain and self._ends is not None:
            new = sequences[:, self.start :]
            width = new.shape[1]
            hit = (new.unsqueeze(-1) == self._ends.to(new.device)).any(-1)
            return (hit.int().argmax(1) + 1).masked_fill(~hit.any(1), width)
        if self.done:
            running = sys.modules["torch"].stack(self.done).int().cummax(0).values == 0
            return (running.sum(0) + 1).clamp(max=sequences.shape[1] - self.start).to(sequences.device)
        return None
