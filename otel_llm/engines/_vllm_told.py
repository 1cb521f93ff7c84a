"""
What the engine core says with its outputs. Not an engine: files that start with ``_`` are none.

In the frontend, at every step and before vLLM looks at the outputs.
Upstream: vllm/v1/engine/output_processor.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from otel_llm.engine_state import EngineStep, Later
from otel_llm.engines._vllm_steps import STEPS
from otel_llm.engines._vllm_waits import KEY
from otel_llm.patching import Hook, Probe, argument


def hooks(probe: Probe) -> tuple[Hook, ...]:
    """In the frontend."""
    later = Later(probe.emit, read, "OutputProcessor.process_outputs", probe.breaker.swallow)

    def process(original: Callable[..., Any]) -> Callable[..., Any]:
        breaker, read_outputs = probe.breaker, argument(original, "engine_core_outputs")

        @functools.wraps(original)
        def process_outputs(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if breaker.closed:
                    outputs = read_outputs(args, kwargs)
                    for output in outputs:
                        if output.events:  # of few steps
                            note(self, outputs)
                            break
                    if len(outputs) and (headers := outputs[0].trace_headers) and (steps := headers.get(STEPS)):
                        later.keep((steps, getattr(self, KEY, None)))
            except Exception as error:
                breaker.swallow("OutputProcessor.process_outputs", error)
            return original(self, *args, **kwargs)

        return process_outputs

    return (Hook(("vllm.v1.engine.output_processor:OutputProcessor.process_outputs",), replacement=process),)


def note(processor: Any, outputs: Iterable[Any]) -> None:
    """Keep what the core says of its scheduling of some requests: with their first output, and after a preemption."""
    now, states = time.monotonic_ns(), processor.request_states
    for output in outputs:
        if output.events and (sample := getattr(states.get(output.request_id), KEY, None)):
            sample.told(now, output.events, output.trace_headers)


def read(told: tuple[str, str | None]) -> Iterator[EngineStep]:
    """The steps that the core told of, and of which model."""
    said, model = told
    index, *steps = said.split(";")
    for step in steps:
        requests, tokens, *detail = step.split(" ")
        prefill, seconds = (int(detail[0]), float(detail[1])) if detail else (None, None)
        yield EngineStep("vllm", model, int(index), int(requests), int(tokens), prefill, seconds)
