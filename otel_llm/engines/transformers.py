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
from collections.abc import Callable
from typing import Any

from otel_llm.engines import _transformers_batching, _transformers_pipeline, _transformers_threads
from otel_llm.engines._transformers_call import Generation, current, stamping
from otel_llm.engines._transformers_counts import Kind
from otel_llm.patching import Call, Engine, Hook, Look, Probe


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    def generate(call: Call) -> None:
        outer = current.get()
        if outer is not None:
            call.kept = outer.nested(call.instance)
        elif call.get("cache_implementation") != "paged":  # that one is handed on to continuous batching
            call.kept = Generation(call, probe).entered()

    def decode(kind: Kind) -> Look:
        def before(call: Call) -> None:
            generation = current.get()
            if generation is None:  # a model with a generate of its own, which goes straight to the loop
                generation = Generation(call, probe, direct=True)
                call.kept = generation.decoding(call, kind, generation.entered())
            elif not generation.muted:
                call.kept = generation.decoding(call, kind)

        return before

    def over(call: Call) -> None:
        if call.kept is not None:
            call.kept(call)

    def stamped(original: Callable[..., Any]) -> Callable[..., Any]:
        now, active, breaker = time.monotonic_ns, stamping.get, probe.breaker

        @functools.wraps(original)
        def _has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
            unfinished = original(self, *args, **kwargs)  # waits for the device, unless its caller just has
            try:
                if (stamp := active()) is not None:
                    stamp(now())
            except Exception as error:
                breaker.swallow("_has_unfinished_sequences", error)
            return unfinished

        return _has_unfinished_sequences

    def deferred(_call: Call) -> None:
        generation = current.get()
        if generation and generation.loop and not generation.muted:
            generation.loop.deferred = True

    def loop(method: str, kind: Kind, *, required: bool = False) -> Hook:
        return Hook((f"{mixin}{method}",), before=decode(kind), after=over, required=required)

    mixin = "transformers.generation.utils:GenerationMixin."
    return (
        Hook((f"{mixin}generate",), before=generate, after=over),
        Hook((f"{mixin}_has_unfinished_sequences",), replacement=stamped),
        loop("_sample", "sample", required=True),
        loop("_beam_search", "beam", required=True),
        loop("_assisted_decoding", "assisted", required=True),
        # From 5.17, where the host need not wait for the device at every step.
        Hook(("transformers.generation.utils:DeferredStopCheck.__init__",), before=deferred, required=False),
        # Moved out of the library after 4.51.
        loop("_contrastive_search", "sample"),
        loop("_dola_decoding", "sample"),
        loop("_group_beam_search", "beam"),
        loop("_constrained_beam_search", "beam"),
        *_transformers_threads.HOOKS,
        *_transformers_pipeline.HOOKS,
        *_transformers_batching.hooks(probe),
    )


ENGINE = Engine("transformers", "transformers", ("transformers.generation.utils",), _hooks)
