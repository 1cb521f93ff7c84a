"""
What the stamps and counts of a call mean, told when it is recorded. Not an engine: ``_`` files are none.

Numbers alone, no tensor and no model: it may be asked long after the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otel_llm.engines._transformers_counts import Counts
from otel_llm.engines._transformers_loop import Loop
from otel_llm.timeline import Timeline


def marks(
    loops: list[Loop], stamps: list[int], sample: Callable[..., Timeline], counted: bool, *, finished: bool
) -> dict[str, Any]:
    """
    Fields for ``Timeline``.

    ``stamps`` are those of a call without a loop; ``sample`` makes the timeline
    of a row; ``counted`` is whether tokens were.
    """
    found: dict[str, Any] = {"attributes": dict(loops[0].waits) if len(loops) == 1 else {}}
    counts = [loop.counts(None if finished else len(loop.ready)) if counted else Counts() for loop in loops]
    if ready := loops[0].ready if loops else stamps[1:]:
        found["first_token"] = ready[0]
    if counts and (prompts := counts[0].prompts) is not None:
        found["prompt_tokens"] = sum(prompts)
    known = [sum(each.rows) for each in counts if each.rows is not None]
    if counts and len(known) == len(counts):
        found["output_tokens"] = sum(known)
    if finished and ready:
        found["last_token"] = loops[-1].last() if loops else stamps[-1]
        rows = counts[0].rows if len(counts) == 1 else None
        if rows:
            found["last_token"] = max(loops[0].last(length) for length in rows)
            found["finish_reasons"] = loops[0].finish_reasons(rows)
            if len(rows) > 1:
                found["samples"] = _samples(loops[0], counts[0].prompts, rows, sample)
    return found


def _samples(loop: Loop, prompts: list[int] | None, rows: list[int], sample: Callable[..., Timeline]) -> list[Timeline]:
    """One per row. A row ends with its last token; what it waits for the others belongs to the call."""
    reasons = loop.finish_reasons(rows)
    return [
        sample(
            ended=loop.last(length),
            first_token=loop.ready[0],
            last_token=loop.last(length),
            prompt_tokens=prompts[index * len(prompts) // len(rows)] if prompts else None,
            output_tokens=length,
            finish_reasons=reasons[index : index + 1],
        )
        for index, length in enumerate(rows)
    ]
