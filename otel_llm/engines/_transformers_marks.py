"""
What the stamps and counts of a call mean, told when it is recorded. Not an engine: ``_`` files are none.

Numbers alone, no tensor and no model: it may be asked long after the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otel_llm.engines._transformers_loop import Loop
from otel_llm.timeline import Timeline


def marks(loops: list[Loop], stamps: list[int], sample: Callable[..., Timeline], *, finished: bool) -> dict[str, Any]:
    """Fields for ``Timeline``. ``stamps`` are those of a call without a loop; ``sample`` makes one of a row."""
    found: dict[str, Any] = {}
    if ready := loops[0].ready if loops else stamps[1:]:
        found["first_token"] = ready[0]
    if loops and (prompts := loops[0].counts.prompts) is not None:
        found["prompt_tokens"] = sum(prompts)
    known = [sum(loop.counts.rows) for loop in loops if loop.counts.rows is not None]
    if loops and len(known) == len(loops):
        found["output_tokens"] = sum(known)
    if finished and ready:
        found["last_token"] = loops[-1].last() if loops else stamps[-1]
        rows = loops[0].counts.rows if len(loops) == 1 else None
        if rows:
            found["last_token"] = max(loops[0].last(length) for length in rows)
            found["finish_reasons"] = loops[0].finish_reasons(rows)
            if len(rows) > 1:
                found["samples"] = _samples(loops[0], rows, sample)
    return found


def _samples(loop: Loop, rows: list[int], sample: Callable[..., Timeline]) -> list[Timeline]:
    """One per row. A row ends with its last token; what it waits for the others belongs to the call."""
    prompts, reasons = loop.counts.prompts, loop.finish_reasons(rows)
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
