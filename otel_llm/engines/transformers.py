"""
transformers: ``model.generate``, in the thread that calls it.

Every decoding loop of the library asks ``_has_unfinished_sequences`` once
before each step, just after it has waited for the device: a stamp taken then
costs no synchronisation of its own and stays outside any compiled graph.
Upstream: transformers/generation/{utils,stopping_criteria}.py, 4.51 to 5.23.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from otel_llm.engines import _transformers_batching, _transformers_pipeline, _transformers_threads
from otel_llm.engines import _transformers_here as here
from otel_llm.engines._transformers_call import Generation
from otel_llm.engines._transformers_counts import Kind
from otel_llm.patching import Engine, Enter, Hook, Leave, Probe


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    def generate(model: Any, given: Mapping[str, Any], _kwargs: object) -> Leave | None:
        if (outer := here.generation.get()) is not None:
            return outer.nested(model)
        if given.get("cache_implementation") == "paged":  # handed on to continuous batching
            return None
        generation = Generation(model, given, probe)
        generation.token = here.generation.set(generation)
        return generation.left

    def decode(kind: Kind) -> Enter:
        def enter(model: Any, given: Mapping[str, Any], kwargs: dict[str, Any]) -> Leave | None:
            if (generation := here.generation.get()) is not None:
                return None if generation.muted else generation.decoding(model, given, kind, kwargs)
            # A model with a generate of its own, which goes straight to the loop.
            generation = Generation(model, given, probe, direct=True)
            leave = generation.decoding(model, given, kind, kwargs)
            generation.token = here.generation.set(generation)

            def left(value: Any, error: BaseException | None) -> None:
                try:
                    leave(value, error)
                finally:  # else all that this thread generates from now on would be part of this
                    generation.left(value, error)

            return left

        return enter

    def stamped(original: Callable[..., Any]) -> Callable[..., Any]:
        now, running, breaker = time.monotonic_ns, here.generation.get, probe.breaker

        @functools.wraps(original)
        def _has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
            unfinished = original(self, *args, **kwargs)  # waits for the device, unless its caller just has
            try:
                if (generation := running()) is not None and (stamp := generation.stamp) is not None:
                    stamp(now())
            except Exception as error:
                breaker.swallow("_has_unfinished_sequences", error)
            return unfinished

        return _has_unfinished_sequences

    def deferred(_check: object, _given: object, _kwargs: object) -> None:
        generation = here.generation.get()
        if generation and generation.loop and not generation.muted:
            generation.loop.deferred = True

    def loop(method: str, kind: Kind, *, required: bool = False) -> Hook:
        return Hook((f"{mixin}{method}",), enter=decode(kind), required=required)

    mixin = "transformers.generation.utils:GenerationMixin."
    return (
        Hook((f"{mixin}generate",), enter=generate),
        Hook((f"{mixin}_has_unfinished_sequences",), replacement=stamped),
        loop("_sample", "sample", required=True),
        loop("_beam_search", "beam", required=True),
        loop("_assisted_decoding", "assisted", required=True),
        # From 5.17, where the host need not wait for the device at every step.
        Hook(("transformers.generation.utils:DeferredStopCheck.__init__",), enter=deferred, required=False),
        # Moved out of the library after 4.51.
        loop("_contrastive_search", "sample"),
        loop("_dola_decoding", "sample"),
        loop("_group_beam_search", "beam"),
        loop("_constrained_beam_search", "beam"),
        *_transformers_threads.HOOKS,
        *_transformers_pipeline.hooks(probe),
        *_transformers_batching.hooks(probe),
    )


ENGINE = Engine("transformers", "transformers", ("transformers.generation.utils",), _hooks)
