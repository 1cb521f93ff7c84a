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
from collections.abc import Callable, Generator
from typing import Any

from otel_llm.engines import _transformers_batching, _transformers_pipeline, _transformers_threads
from otel_llm.engines._transformers_call import Generation, current
from otel_llm.engines._transformers_loop import Kind
from otel_llm.patching import Body, Call, Engine, Hook, Probe, Returned

Steps = Generator[None, Returned, Any]


def _hooks(probe: Probe) -> tuple[Hook, ...]:
    def generate(call: Call) -> Steps:
        outer = current.get()
        if outer is not None:
            return (yield from nested(call, outer))
        if call.get("cache_implementation") == "paged":  # handed on to continuous batching
            yield
            return None
        generation = Generation(call, probe)
        token = current.set(generation)
        returned = yield
        current.reset(token)
        generation.ended(returned.error)
        return None

    def nested(call: Call, outer: Generation) -> Steps:
        draft = outer.loop is not None
        if outer.muted or (call.instance is outer.model and not draft):
            yield  # the outer call, on its way through a custom or retired decoding method
            return
        outer.muted, begin = True, time.monotonic_ns()
        yield
        outer.muted = False
        if draft:
            outer.draft += time.monotonic_ns() - begin

    def decode(kind: Kind) -> Body:
        def body(call: Call) -> Steps:
            generation = outer = current.get()
            if outer is not None and outer.muted:
                yield
                return
            if generation is None:  # a model with a generate of its own, which goes straight to the loop
                generation = Generation(call, probe, direct=True)
            loop = generation.enter(call, kind)
            token = current.set(generation)
            returned = yield
            current.reset(token)
            generation.loop = None
            if returned.error is None:
                loop.end(returned.value, time.monotonic_ns())
            if outer is None:
                generation.ended(returned.error)

        return body

    def stamped(original: Callable[..., Any]) -> Callable[..., Any]:
        now, active, breaker = time.monotonic_ns, current.get, probe.breaker

        @functools.wraps(original)
        def _has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
            unfinished = original(self, *args, **kwargs)  # waits for the device, unless its caller just has
            try:
                generation = active()
                if generation is not None and not generation.muted:
                    generation.stamps.append(stamp := now())
                    if generation.device is not None:
                        generation.device.synchronised(stamp)
            except Exception as error:
                breaker.swallow("_has_unfinished_sequences", error)
            return unfinished

        return _has_unfinished_sequences

    def kept(original: Callable[..., Any]) -> Callable[..., Any]:
        active, breaker = current.get, probe.breaker

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            done = original(self, *args, **kwargs)
            try:
                generation = active()
                loop = None if generation is None else generation.loop
                if generation is not None and loop is not None and loop.criteria is self:
                    if loop.done is not None:
                        loop.done.append(done)
                    if generation.device is not None:
                        generation.device.launched()
            except Exception as error:
                breaker.swallow("StoppingCriteriaList", error)
            return done

        return call

    def deferred(_call: Call) -> None:
        generation = current.get()
        if generation and generation.loop and not generation.muted:
            generation.loop.deferred = True

    mixin = "transformers.generation.utils:GenerationMixin."
    return (
        Hook((mixin + "generate",), generate),
        Hook((mixin + "_has_unfinished_sequences",), replacement=stamped),
        Hook((mixin + "_sample",), decode("sample")),
        Hook((mixin + "_beam_search",), decode("beam")),
        Hook((mixin + "_assisted_decoding",), decode("assisted")),
        Hook(("transformers.generation.stopping_criteria:StoppingCriteriaList.__call__",), replacement=kept),
        # From 5.17, where the host need not wait for the device at every step.
        Hook(("transformers.generation.utils:DeferredStopCheck.__init__",), glance=deferred, required=False),
        # Moved out of the library after 4.51.
        Hook((mixin + "_contrastive_search",), decode("sample"), required=False),
        Hook((mixin + "_dola_decoding",), decode("sample"), required=False),
        Hook((mixin + "_group_beam_search",), decode("beam"), required=False),
        Hook((mixin + "_constrained_beam_search",), decode("beam"), required=False),
        *_transformers_threads.HOOKS,
        *_transformers_pipeline.HOOKS,
        *_transformers_batching.hooks(probe),
    )


ENGINE = Engine("transformers", "transformers", ("transformers.generation.utils",), _hooks)
